"""How a trained model's results fall as its mentions get worse: grade by grade, the knowledge base indexed once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from rich.table import Table

from mimic_pl.callbacks.results import metrics_by_score
from mimic_pl.data import MELDataModule
from mimic_pl.data.degradation import KINDS, Degradation
from mimic_pl.errors import ConfigError
from mimic_pl.files import write_file
from mimic_pl.model import MIMIC
from mimic_pl.ranking import EntityIndex, IndexBuilder
from mimic_pl.ranking.builder import Batches
from mimic_pl.ranking.index import Shard
from mimic_pl.records import Entity

FILE = "robustness.json"
"""Name in the run's folder of what was measured."""


class Grade(NamedTuple):
    """Results at one strength of one kind of degradation.

    Attributes:
        kind: The kind's name, for example ``blur``.
        side: ``image`` or ``text``.
        strength: In the kind's unit; 0 is undisturbed.
        metrics: By score and name: ``{"overall": {"hits@1": ..., "mrr": ...}, "text": {...}, ...}``.
    """

    kind: str
    side: str
    strength: float
    metrics: dict[str, dict[str, float]]


def grades_of(kinds: str, seed: int) -> list[Degradation]:
    """The degradations to measure: of each kind strength 0, and then its grades.

    Args:
        kinds: Names of kinds, separated by commas.
        seed: Decides what is drawn.

    Raises:
        ConfigError: There is no such kind.
    """
    known = {kind.kind: kind for kind in KINDS}
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"--kinds: there is no kind {', '.join(unknown) or repr(kinds)}. There are: {', '.join(known)}."
        )
    return [known[name](strength, seed) for name in names for strength in (0.0, *known[name].grades)]


def measure(
    trainer: Trainer,
    model: MIMIC,
    data: MELDataModule,
    degradations: Iterable[Degradation],
    split: Literal["test", "val"] = "test",
    ckpt_path: str | None = None,
) -> Iterator[Grade]:
    """Evaluate the model once for each degradation; what strength 0 gives is measured once for all kinds.

    Every evaluation is the Trainer's own ``test`` or ``validate``, with all hooks of the model; only the index of the
    knowledge base is made once, when the first evaluation asks for it.

    Args:
        trainer: Evaluates.
        model: The trained model.
        data: Its data; a degradation that it has already is replaced.
        degradations: What is measured, in this order.
        split: The split that is evaluated.
        ckpt_path: Checkpoint to take the weights from; by default they stay as they are.

    Example:
        >>> model, data = load_run("lightning_logs/version_0")  # doctest: +SKIP
        >>> list(measure(Trainer(logger=False), model, data, [Blur(4), Typos(0.1)]))  # doctest: +SKIP
    """
    evaluate = trainer.test if split == "test" else trainer.validate
    undisturbed: dict[str, dict[str, float]] | None = None
    with _indexed_once(model), _as_it_was(data):
        for degradation in degradations:
            metrics = None if degradation.strength else undisturbed
            if metrics is None:
                data.degradation = degradation if degradation.strength else None
                evaluate(model, datamodule=data, ckpt_path=ckpt_path, verbose=False, weights_only=True)
                metrics = metrics_by_score(trainer.callback_metrics, split)
                ckpt_path = None  # loaded
            if not degradation.strength:
                undisturbed = metrics
            yield Grade(degradation.kind, degradation.side, float(degradation.strength), metrics)


def write_grades(folder: Path, grades: Sequence[Grade]) -> Path:
    """Write what was measured into a run's folder, wholly or not at all.

    Raises:
        StoreError: There is no room, or the folder cannot be written to.
    """
    records = [grade._asdict() for grade in grades]
    path = folder / FILE
    write_file(path, (json.dumps(records, indent=1) + "\n").encode())
    return path


def robustness_table(grades: Sequence[Grade], title: str | None = None) -> Table:
    """H@1 in percent: a row for each kind and strength, a column for each score."""
    table = Table(title=title, caption="H@1 in percent; strength 0 is undisturbed")
    table.add_column("kind")
    table.add_column("strength", justify="right")
    scores = list(grades[0].metrics) if grades else []
    for score in scores:
        table.add_column(score, justify="right", style="bold" if score == "overall" else None)
    last = None
    for grade in grades:
        if last not in (None, grade.kind):
            table.add_section()
        cells = [f"{100 * grade.metrics[score]['hits@1']:.2f}" for score in scores]
        table.add_row("" if grade.kind == last else grade.kind, f"{grade.strength:g}", *cells)
        last = grade.kind
    return table


class _BuiltOnce(IndexBuilder):
    """Makes the index that another builder makes, once, and hands it out again."""

    def __init__(self, builder: IndexBuilder) -> None:
        super().__init__(builder.dtype, builder.storage, builder.folder)
        self._builder = builder
        self._index: EntityIndex | None = None

    def in_memory(
        self,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        shard: Shard | None = None,
        made_from: str = "",
    ) -> EntityIndex:
        if self._index is None:
            self._index = self._builder.in_memory(entities, batches, device, shard, made_from)
        return self._index

    def on_disk(
        self,
        folder: Path,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        description: Mapping[str, Any],
        anew: bool = False,
        shard: Shard | None = None,
    ) -> EntityIndex:
        if self._index is None:
            self._index = self._builder.on_disk(folder, entities, batches, device, description, anew, shard)
        return self._index


@contextmanager
def _indexed_once(model: MIMIC) -> Iterator[None]:
    """The knowledge base is indexed once, however often the model asks."""
    builder = model.index_builder
    model.index_builder = _BuiltOnce(builder)
    try:
        yield
    finally:
        model.index_builder = builder


@contextmanager
def _as_it_was(data: MELDataModule) -> Iterator[None]:
    """The data keeps its own degradation."""
    degradation = data.degradation
    try:
        yield
    finally:
        data.degradation = degradation
