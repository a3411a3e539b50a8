"""Robustness of a trained model to degraded mentions, measured with a single index of the knowledge base."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from lightning.pytorch import Trainer
from rich.markup import escape
from rich.table import Table

from mimic_pl.callbacks.results import metrics_by_score
from mimic_pl.data import MELDataModule
from mimic_pl.data.degradation import KINDS, Degradation
from mimic_pl.errors import ConfigError
from mimic_pl.escaping import printable
from mimic_pl.files import write_file
from mimic_pl.model import MIMIC

FILE = "robustness.json"
"""Name of the results file in the run's folder."""


class Grade(NamedTuple):
    """Results at one strength of one kind of degradation.

    Attributes:
        kind: The kind's name, for example ``blur``.
        side: ``image`` or ``text``.
        strength: In the kind's unit; 0 is the original input.
        metrics: By score and name: ``{"overall": {"hits@1": ..., "mrr": ...}, "text": {...}, ...}``.
    """

    kind: str
    side: str
    strength: float
    metrics: dict[str, dict[str, float]]


def grades_of(kinds: str, seed: int) -> list[Degradation]:
    """Degradations to measure: strength 0 and the grades of each kind.

    Args:
        kinds: Comma-separated names of kinds.
        seed: Seed of the degradations.

    Raises:
        ConfigError: A kind is unknown.
    """
    known = {kind.kind: kind for kind in KINDS}
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"--kinds: unknown kind {', '.join(unknown) or repr(kinds)}. Choose from: {', '.join(known)}."
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
    """Evaluate the model for each degradation; strength 0 is evaluated once for all kinds.

    Every evaluation is the Trainer's ``test`` or ``validate``, with all hooks of the model; only the index of the
    knowledge base is built just once, by the first evaluation.

    Args:
        trainer: The Trainer that evaluates.
        model: The trained model.
        data: Its data; the degradation that it has is replaced in the meantime.
        degradations: Degradations to measure, in this order.
        split: The split to evaluate.
        ckpt_path: Checkpoint to load weights from; by default the model's current weights are used.

    Example:
        >>> model, data = load_run("lightning_logs/version_0")  # doctest: +SKIP
        >>> list(measure(Trainer(logger=False), model, data, [Blur(4), Typos(0.1)]))  # doctest: +SKIP
    """
    evaluate = trainer.test if split == "test" else trainer.validate
    original: dict[str, dict[str, float]] | None = None
    with model.one_index(), _original_degradation(data):
        for degradation in degradations:
            metrics = None if degradation.strength else original
            if metrics is None:
                data.degradation = degradation if degradation.strength else None
                evaluate(model, datamodule=data, ckpt_path=ckpt_path, verbose=False, weights_only=True)
                metrics = metrics_by_score(trainer.callback_metrics, split)
                ckpt_path = None  # loaded by the first evaluation
            if not degradation.strength:
                original = metrics
            yield Grade(degradation.kind, degradation.side, float(degradation.strength), metrics)


def write_grades(folder: Path, grades: Sequence[Grade]) -> Path:
    """Write results into a run's folder, atomically.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
    """
    records = [grade._asdict() for grade in grades]
    path = folder / FILE
    write_file(path, (json.dumps(records, indent=1) + "\n").encode())
    return path


def robustness_table(grades: Sequence[Grade], title: str | None = None) -> Table:
    """Table of H@1 in percent: a row per kind and strength, a column per score."""
    table = Table(title=title, caption="H@1 in percent; strength 0 is the original input")
    table.add_column("kind")
    table.add_column("strength", justify="right")
    scores = list(grades[0].metrics) if grades else []
    for score in scores:
        table.add_column(escape(printable(score)), justify="right", style="bold" if score == "overall" else None)
    last = None
    for grade in grades:
        if last not in (None, grade.kind):
            table.add_section()
        cells = [f"{100 * grade.metrics[score]['hits@1']:.2f}" for score in scores]
        table.add_row("" if grade.kind == last else grade.kind, f"{grade.strength:g}", *cells)
        last = grade.kind
    return table


@contextmanager
def _original_degradation(data: MELDataModule) -> Iterator[None]:
    """Restore the degradation of the data on exit."""
    degradation = data.degradation
    try:
        yield
    finally:
        data.degradation = degradation
