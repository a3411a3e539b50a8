"""Collects what was evaluated, and the logged metrics by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.data.table import as_table
from mimic_pl.distributed import ProcessGroup
from mimic_pl.metrics import GROUPS, HITS
from mimic_pl.records import Entity, Mention

PUBLISHED = (*(f"hits@{k}" for k in HITS), "mrr", "mr")
"""Names of the metrics, in the usual order of papers."""

RECALL = tuple(f"recall@{k}" for k in HITS)
"""Additional metrics if mentions have several golds."""


class EvaluatedMentions(Callback):
    """Base of callbacks that need to know which mentions were evaluated: all, or some with ``limit_test_batches``."""

    def __init__(self) -> None:
        self._indices: set[int] = set()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the mentions of an earlier evaluation."""
        self._indices = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the mentions of an earlier evaluation."""
        self._indices = set()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the mentions of an earlier evaluation."""
        self._indices = set()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Count the batch's mentions."""
        self._count(outputs)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Count the batch's mentions."""
        self._count(outputs)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Count the batch's mentions."""
        self._count(outputs)

    def evaluated(self, mentions: Sequence[Mention]) -> list[Mention]:
        """Those of a split that were evaluated, in their order; collective: must be called by every process."""
        everyone = ProcessGroup().gather_objects(self._indices)
        return [mentions[index] for index in sorted(set().union(*everyone))]

    def _count(self, outputs: Any) -> None:
        if isinstance(outputs, Mapping) and "index" in outputs:
            self._indices.update(outputs["index"].tolist())


def metrics_by_score(logged: Mapping[str, Tensor], stage: str) -> dict[str, dict[str, float]]:
    """A stage's metrics by score: ``{"overall": {"mrr": ...}, "text": {"mrr": ...}, ...}``.

    Args:
        logged: The Trainer's ``callback_metrics``.
        stage: ``val`` or ``test``: names are ``{stage}/{metric}`` for the overall score, ``{stage}/{unit}/{metric}``
            for a unit's. Those of :data:`~mimic_pl.metrics.GROUPS` are left out, see :func:`metrics_by_group`.
    """
    result: dict[str, dict[str, float]] = {"overall": {}} | _by_score(logged, stage)
    return {score: metrics for score, metrics in result.items() if score not in GROUPS}


def metrics_by_group(logged: Mapping[str, Tensor], stage: str) -> dict[str, dict[str, Any]]:
    """Results for mentions with golds seen and unseen in training, if logged.

    Returns:
        ``{"seen": {"mentions": 12, "metrics": {"mrr": ...}}, "unseen": ...}``; empty if not logged.
    """
    found = _by_score(logged, stage)
    return {
        group: {"mentions": int(found[group].pop("mentions")), "metrics": found[group]}
        for group in GROUPS
        if group in found
    }


def _by_score(logged: Mapping[str, Tensor], stage: str) -> dict[str, dict[str, float]]:
    """A stage's metrics by the part of their names between stage and metric; ``overall`` without one."""
    result: dict[str, dict[str, float]] = {}
    for name, value in logged.items():
        prefix, _, rest = name.partition("/")
        if prefix == stage:
            score, _, metric = rest.rpartition("/")
            result.setdefault(score or "overall", {})[metric] = round(float(value), 7)
    return {score: dict(sorted(metrics.items(), key=_published_order)) for score, metrics in result.items()}


def _published_order(metric: tuple[str, float]) -> tuple[int, str]:
    order = PUBLISHED + RECALL
    return (order.index(metric[0]) if metric[0] in order else len(order), metric[0])


def missing_golds(mentions: Sequence[Mention], entities: Sequence[Entity]) -> int:
    """Number of mentions without a gold in the knowledge base."""
    known = as_table(entities).positions
    return sum(not any(gold in known for gold in mention.golds) for mention in mentions)


def title_of(trainer: Trainer) -> str:
    """Title of a Trainer's data module; by default, its class name."""
    data = getattr(trainer, "datamodule", None)
    title: str = getattr(data, "title", type(data).__name__)
    return title


def published_results(trainer: Trainer) -> Mapping[str, float] | None:
    """Published test results on a Trainer's data set, if any."""
    data = getattr(trainer, "datamodule", None)
    published = getattr(data, "published", None)
    return published.test if isinstance(published, PublishedStatistics) else None
