"""The result table: overall score, each unit and the published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mimic_pl.callbacks.calibrated_results import CalibratedResults, results_table
from mimic_pl.callbacks.results import (
    PUBLISHED,
    RECALL,
    EvaluatedMentions,
    metrics_by_group,
    metrics_by_score,
    missing_golds,
    published_results,
    title_of,
)
from mimic_pl.data.protocol import Records, data_of
from mimic_pl.escaping import printable


class ResultTable(EvaluatedMentions):
    """Prints a table after ``test`` and ``validate``: a row for the overall score and for each unit.

    If mentions have several golds, there is a second table of recall over them. If a test split has golds both seen and
    unseen in training, each group has a row with its overall results. After ``test``, published results of the data
    set, if any, are the last row.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of the test split."""
        self._print(trainer, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of the validation split, except during training."""
        if trainer.state.fn == "validate":
            self._print(trainer, "val")

    def _print(self, trainer: Trainer, stage: str) -> None:
        data = data_of(trainer, Records)
        mentions = self.evaluated(data.mentions[stage])  # collective: must be called by every process
        scores = metrics_by_score(trainer.callback_metrics, stage)
        if not trainer.is_global_zero or not scores["overall"]:
            return
        published = published_results(trainer) if stage == "test" else None
        part = f"{len(mentions):,} of " if len(mentions) < len(data.mentions[stage]) else ""
        caption = f"{part}{len(data.mentions[stage]):,} mentions, ranked among {len(data.entities):,} entities"
        if missing := missing_golds(mentions, data.entities):
            caption += f"; {missing:,} without a gold in the knowledge base count as misses"
        title = f"{title_of(trainer)}, {'test' if stage == 'test' else 'validation'}"
        groups = metrics_by_group(trainer.callback_metrics, stage)
        Console().print(result_table(title, scores, published, caption, groups))
        if any(name in scores["overall"] for name in RECALL):
            Console().print(result_table("recall over all golds of a mention", scores, columns=RECALL))
        calibrated = CalibratedResults.of(trainer) if stage == "test" else None
        if calibrated is not None and calibrated.results is not None:
            Console().print(results_table(calibrated.results))


def result_table(
    title: str,
    scores: Mapping[str, Mapping[str, float]],
    published: Mapping[str, float] | None = None,
    caption: str | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    columns: Sequence[str] = PUBLISHED,
) -> Table:
    """Build the table: metrics in percent, except for the mean rank.

    Args:
        title: Its title.
        scores: Metrics by score, in [0, 1].
        published: Published metrics of the overall score, in [0, 1]; missing metrics are left blank.
        caption: Caption, such as the number of mentions.
        groups: Results of subsets of the mentions, from :func:`~mimic_pl.callbacks.results.metrics_by_group`.
        columns: The metrics to show.
    """
    table = Table(title=escape(printable(title)), caption=caption)
    table.add_column("score")
    for name in columns:
        table.add_column(name.replace("hits", "h").replace("recall", "r").upper(), justify="right")
    for name, metrics in scores.items():
        table.add_row(escape(printable(name)), *_cells(columns, metrics), style="bold" if name == "overall" else None)
    if groups:
        table.add_section()
        for name, group in groups.items():
            table.add_row(f"{name} ({group['mentions']:,})", *_cells(columns, group["metrics"]))
    if published:
        table.add_section()
        table.add_row("published", *_cells(columns, published), style="cyan")
    return table


def _cells(columns: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    return [_cell(name, metrics[name]) if name in metrics else "" for name in columns]


def _cell(name: str, value: float) -> str:
    return f"{value if name == 'mr' else 100 * value:.2f}"
