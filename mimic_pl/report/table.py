"""The table of a report: a row per experiment with its inputs and results, and the published results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mimic_pl.callbacks.results import PUBLISHED as METRICS
from mimic_pl.escaping import markdown_text as cell
from mimic_pl.escaping import printable, spreadsheet
from mimic_pl.report.experiments import Experiment

Row = dict[str, Any]
"""A row by column name: unrounded numbers (fractions between 0 and 1), texts, or None."""

PUBLISHED_NAME = "published (Luo et al., 2023)"

PARTS = (("dev", "hits@1"), ("dev", "mrr"), ("seen", "hits@1"), ("unseen", "hits@1"))
"""Results on subsets of the data, which not every run has."""


def units_of(experiments: Sequence[Experiment]) -> list[str]:
    """Names of the units in order of appearance."""
    names = (name for experiment in experiments for run in experiment.runs for name in run.metrics)
    return [name for name in dict.fromkeys(names) if name != "overall"]


def rows_of(experiments: Sequence[Experiment]) -> list[Row]:
    """Rows of all experiments by data set, each followed by the published results.

    Since results are only comparable on the same inputs, rows include these: text fields, size of the knowledge base,
    number of mentions, encoder, epochs.
    """
    units = units_of(experiments)
    rows: list[Row] = []
    for dataset in dict.fromkeys(experiment.dataset for experiment in experiments):
        own = [experiment for experiment in experiments if experiment.dataset == dataset]
        rows += [_row(experiment, units) for experiment in own]
        published = next(filter(None, (experiment.published for experiment in own)), None)
        if published is not None:
            row: Row = dict.fromkeys(rows[-1])
            row |= {
                "experiment": PUBLISHED_NAME,
                "dataset": dataset,
                "mention_text": "mention, sentence",
                "entity_text": "name, attributes",
                "entities": published.entities,
                "mentions": published.mentions["test"],
                "encoder": "openai/clip-vit-base-patch32",
            }
            rows.append(row | {f"{name}_mean": value for name, value in published.test.items()})
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table: percent with deviations over seeds, and the inputs in the last columns."""
    figures = [column.removesuffix("_mean") for column in rows[0] if column.endswith("_mean")]
    parts = [f"{part}_{metric}" for part, metric in PARTS]
    figures = [name for name in figures if name not in parts or any(row[f"{name}_mean"] is not None for row in rows)]
    titles = ["experiment", *map(_title, figures)]
    titles += ["seeds", "data set", "mention text", "entity text", "KB entities", "mentions", "encoder", "epochs"]
    lines = [f"| {' | '.join(map(cell, titles))} |", "|---" + "|---:" * len(figures) + "|---" * 8 + "|"]
    for row in rows:
        cells = [cell(row["experiment"]), *(_figure(row, name) for name in figures), cell(row["seeds"] or "")]
        cells += [cell(row["dataset"]), _code(row["mention_text"]), _code(row["entity_text"])]
        without = row["mentions_without_gold"]
        missing = f" ({without:,} without gold in the KB)" if without else ""
        cells += [f"{row['entities']:,}", f"{row['mentions']:,}{missing}", cell(row["encoder"]), row["epochs"] or ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Format the rows as CSV: unrounded, with mean and deviation in separate columns; no text is a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: spreadsheet(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def unlike_inputs(rows: Sequence[Row]) -> list[str]:
    """Warnings about rows of the same data set with different inputs, whose results are not comparable."""
    columns = {
        "mention_text": "text of mentions",
        "entity_text": "text of entities",
        "entities": "size of the knowledge base",
        "mentions": "number of mentions",
    }
    sentences = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset and row["experiment"] != PUBLISHED_NAME]
        unlike = [title for column, title in columns.items() if len({row[column] for row in own}) > 1]
        if unlike:
            sentences.append(f"Rows of {dataset} differ in {', '.join(unlike)}: only compare those that agree.")
    return sentences


def percent(mean: float | None, deviation: float | None = None, metric: str = "hits@1") -> str:
    """Format as ``56.12 ± 0.30``: in percent, except for the mean rank; empty for None."""
    if mean is None:
        return ""
    factor = 1.0 if metric.endswith("mr") and not metric.endswith("mrr") else 100.0
    return f"{factor * mean:.2f}" + ("" if deviation is None else f" ± {factor * deviation:.2f}")


def _row(experiment: Experiment, units: Sequence[str]) -> Row:
    first = experiment.runs[0]
    row: Row = {
        "experiment": experiment.name,
        "dataset": experiment.dataset,
        "mention_text": experiment.mention_text,
        "entity_text": experiment.entity_text,
        "entities": first.summary["entities"],
        "mentions": first.summary["mentions"],
        "mentions_without_gold": first.summary.get("mentions_without_gold_in_kb", 0),
        "encoder": experiment.encoder,
        "epochs": _epochs(experiment),
        "runs": len(experiment.runs),
        "seeds": ", ".join(experiment.seeds),
    }
    wanted = [("overall", metric, metric) for metric in METRICS]
    wanted += [(score, metric, f"{score}_{metric}") for score, metric in (*PARTS, *((u, "hits@1") for u in units))]
    for score, metric, column in wanted:
        row[f"{column}_mean"] = experiment.mean(score, metric)
        row[f"{column}_deviation"] = experiment.deviation(score, metric)
    return row


def _epochs(experiment: Experiment) -> str:
    """``38 of 60``: epochs of the tested checkpoint, of all epochs trained."""
    best = [run.best_epoch for run in experiment.runs if run.best_epoch is not None]
    trained = [run.trained_epochs for run in experiment.runs if run.trained_epochs is not None]
    return " of ".join(filter(None, (_span(best), _span(trained))))


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _title(figure: str) -> str:
    """``dev H@1`` for ``dev_hits@1``."""
    score, _, metric = figure.rpartition("_")
    return f"{score} {metric.replace('hits', 'H').upper()}".strip()


def _figure(row: Row, name: str) -> str:
    return percent(row[f"{name}_mean"], row[f"{name}_deviation"], name)


def _code(text: str) -> str:
    line = printable(" ".join(text.split()))
    return f"`{line.replace('|', chr(92) + '|').replace('`', chr(39))}`"
