"""Logged metrics, sorted by the score that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mimic_pl.data.records import Entity, Mention
from mimic_pl.data.table import as_table
from mimic_pl.metrics import HITS

PUBLISHED = (*(f"hits@{k}" for k in HITS), "mrr", "mr")
"""The metrics' names in the order in which papers print them."""


def metrics_by_score(logged: Mapping[str, Tensor], stage: str) -> dict[str, dict[str, float]]:
    """Sort what a stage logged by score: ``{"overall": {"mrr": ...}, "text": {"mrr": ...}, ...}``.

    Args:
        logged: The Trainer's ``callback_metrics``.
        stage: ``val`` or ``test``: names are ``{stage}/{metric}`` for the overall score, ``{stage}/{unit}/{metric}``
            for a unit's.
    """
    result: dict[str, dict[str, float]] = {"overall": {}}
    for name, value in logged.items():
        prefix, _, rest = name.partition("/")
        if prefix == stage:
            score, _, metric = rest.rpartition("/")
            result.setdefault(score or "overall", {})[metric] = round(float(value), 7)
    return {score: dict(sorted(metrics.items(), key=_published_order)) for score, metrics in result.items()}


def _published_order(metric: tuple[str, float]) -> tuple[int, str]:
    return (PUBLISHED.index(metric[0]) if metric[0] in PUBLISHED else len(PUBLISHED), metric[0])


def missing_golds(mentions: Sequence[Mention], entities: Sequence[Entity]) -> int:
    """How many mentions have no gold in the knowledge base."""
    known = as_table(entities).positions
    return sum(not any(gold in known for gold in mention.golds) for mention in mentions)
