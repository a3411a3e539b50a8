"""``report.md``, ``report.csv`` and the plots of some runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mimic_pl.errors import DataError
from mimic_pl.report.drawing import save
from mimic_pl.report.evaluated_run import EvaluatedRun
from mimic_pl.report.experiments import Experiment, differences, group_runs
from mimic_pl.report.gates import gates_figure
from mimic_pl.report.plots import calibration_figure, curves_figure, hits_figure, robustness_figure
from mimic_pl.report.significance import RESAMPLES, Comparison, compare
from mimic_pl.report.table import as_csv, cell, markdown, percent, rows_of, unlike_inputs

_SETTINGS = 20
"""Settings in which two experiments differ that are listed at most."""


def write_report(
    runs: Sequence[EvaluatedRun], folder: str | Path, baseline: EvaluatedRun | None = None, gates: bool = False
) -> list[Path]:
    """Write the report of some runs into a folder; files of an earlier report there are replaced.

    Args:
        runs: At least one.
        folder: It is made if it does not exist.
        baseline: The run whose experiment stands first, and with which the others of its data set are compared; by
            default the first of each data set.
        gates: Also draw histograms of the gates, for which the models are loaded.

    Returns:
        The files that were written.

    Raises:
        DataError: A run of the baseline's data set was tested on other mentions.
    """
    folder = Path(folder)
    experiments = group_runs([*([baseline] if baseline is not None else []), *runs])
    significance = _significance(experiments, baseline)  # before anything is written: it may fail
    folder.mkdir(parents=True, exist_ok=True)
    plots = [
        (title, note, save(figure, folder / f"{name}.png"))
        for title, note, name, figure in _figures(experiments, gates)
        if figure is not None
    ]
    rows = rows_of(experiments)
    parts = [
        "# Report",
        "Test results, percent (MR: mean rank), mean ± standard deviation over seeds. Results with other inputs are "
        "not comparable, so every row says what it was given.",
        *(f"**{sentence}**" for sentence in (*unlike_inputs(rows), *_repeated_seeds(experiments))),
        markdown(rows),
        *_settings(experiments),
        *significance,
        *(f"## {title}\n\n{note}\n\n![{cell(title)}]({file.name})" for title, note, file in plots),
        _runs(experiments),
    ]
    (folder / "report.md").write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    (folder / "report.csv").write_text(as_csv(rows), encoding="utf-8")
    return [folder / "report.md", folder / "report.csv", *(file for _, _, file in plots)]


def _figures(experiments: Sequence[Experiment], gates: bool) -> Iterator[tuple[str, str, str, Figure | None]]:
    """Title, how to read it, name of the file, and figure."""
    note = "A line for each run; a dot marks the epoch whose checkpoint was tested."
    yield "Validation MRR by epoch", note, "mrr_by_epoch", curves_figure(experiments)
    yield "H@1 by experiment", "Test split; whiskers are the deviation over seeds.", "hits", hits_figure(experiments)
    note = "Dotted: undisturbed."
    for experiment in experiments:
        file = f"robustness_{_file_name(experiment.name)}"
        yield f"Robustness of {experiment.name}", note, file, robustness_figure(experiment)
    note = (
        "The confidence is the first candidate's share in the softmax of the overall scores over the kept candidates, "
        "not over the whole knowledge base; the expected error is the mean distance of confidence and accuracy over "
        "ten bins. The first run of each experiment."
    )
    yield "Calibration of the overall score", note, "calibration", calibration_figure(experiments)
    if not gates:
        return
    note = "Gates of the first run's test mentions. A gate at 0 shuts, at -1 or 1 it is wide open."
    for experiment in experiments:
        yield f"Gates of {experiment.name}", note, f"gates_{_file_name(experiment.name)}", gates_figure(experiment)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _repeated_seeds(experiments: Sequence[Experiment]) -> Iterator[str]:
    for experiment in experiments:
        repeated = sorted({seed for seed in experiment.seeds if experiment.seeds.count(seed) > 1})
        if repeated:
            yield (
                f"{cell(experiment.name)} has several runs of seed {', '.join(repeated)}; all of them count, so that "
                "its deviation says less."
            )


def _settings(experiments: Sequence[Experiment]) -> Iterator[str]:
    """For each experiment in which settings it differs from the first one of its data set."""
    lines = []
    for first, others in _by_dataset(experiments):
        for other in others:
            if not (first.runs[0].config.get("model") and other.runs[0].config.get("model")):
                continue  # a baseline has no settings to compare
            pairs = differences(first, other)
            lines += [
                f"| {cell(other.name)} | {cell(name)} | {cell(after)} | {cell(before)} in {cell(first.name)} |"
                for name, before, after in pairs[:_SETTINGS]
            ]
            if len(pairs) > _SETTINGS:
                lines.append(f"| {cell(other.name)} | and {len(pairs) - _SETTINGS} more | | |")
    if lines:
        head = ["| experiment | setting | its value | instead of |", "|---|---|---|---|"]
        yield "## What differs\n\n" + "\n".join((*head, *lines))


def _significance(experiments: Sequence[Experiment], baseline: EvaluatedRun | None) -> list[str]:
    """The section of comparisons; none without two experiments on one data set."""
    lines = []
    for first, others in _by_dataset(experiments):
        chosen = baseline is not None and any(run.folder == baseline.folder for run in first.runs)
        for other in others:
            try:
                found = compare(*([run.predictions for run in e.runs] for e in (other, first)))
            except DataError as error:
                if chosen:
                    raise DataError(f"{other.name} cannot be compared with {first.name}. {error}") from error
                lines.append(f"| {cell(other.name)} | {cell(first.name)} | not compared: {cell(error)} | | | |")
                continue
            hits, mrr = _difference(found["hits@1"]), _difference(found["mrr"])
            lines.append(f"| {cell(other.name)} | {cell(first.name)} | {hits} | {mrr} |")
    if not lines:
        return []
    text = (
        "## Significance\n\nDifferences in points with their 95 % interval and two-sided p-value: paired bootstrap "
        f"over the test mentions ({RESAMPLES:,} draws; Koehn 2004, Berg-Kirkpatrick et al. 2012). Of several seeds a "
        "mention's figure is the mean: the interval speaks of other mentions, not of other seeds. p is not corrected "
        "for the number of comparisons."
    )
    head = "| experiment | against | H@1 | p | MRR | p |\n|---|---|---|---|---|---|"
    return ["\n\n".join((text, "\n".join((head, *lines))))]


def _difference(found: Comparison) -> str:
    return (
        f"{100 * found.difference:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f}) | "
        f"{'< 0.001' if found.p < 0.001 else f'{found.p:.3f}'}"
    )


def _by_dataset(experiments: Sequence[Experiment]) -> Iterator[tuple[Experiment, list[Experiment]]]:
    """For each data set its first experiment and the others."""
    for dataset in dict.fromkeys(experiment.dataset for experiment in experiments):
        first, *others = [experiment for experiment in experiments if experiment.dataset == dataset]
        yield first, others


def _runs(experiments: Sequence[Experiment]) -> str:
    """Every run by itself."""
    lines = ["## Runs", "", "| experiment | seed | H@1 | MRR | checkpoint | folder |", "|---|---|---:|---:|---|---|"]
    for experiment in experiments:
        for run in experiment.runs:
            overall = run.metrics["overall"]
            checkpoint = Path(run.summary.get("checkpoint") or "none").name
            figures = f"{percent(overall['hits@1'])} | {percent(overall.get('mrr'))}"
            cells = [cell(experiment.name), cell(run.seed), figures, cell(checkpoint), _place(run.folder)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(folder: Path) -> str:
    """A run's folder, as seen from the working directory if it lies below it."""
    here = Path.cwd()
    return cell((folder.relative_to(here) if folder.is_relative_to(here) else folder).as_posix())
