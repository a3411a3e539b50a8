"""Writing ``report.md``, ``report.csv`` and plots of runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mimic_pl.bootstrap import RESAMPLES
from mimic_pl.checkpoints.atomic_io import write_run_file
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.escaping import markdown_text as cell
from mimic_pl.evaluated_run import EvaluatedRun
from mimic_pl.figures import save
from mimic_pl.report.disagreements import disagreements_figure, find_disagreements
from mimic_pl.report.experiments import Experiment, differences, group_runs
from mimic_pl.report.gates import gates_figure
from mimic_pl.report.plots import (
    curves_figure,
    hits_figure,
    reliability_figure,
    risk_coverage_figure,
    robustness_figure,
    unit_curves_figure,
)
from mimic_pl.report.significance import Comparison, compare
from mimic_pl.report.table import as_csv, markdown, percent, rows_of, unlike_inputs
from mimic_pl.runs import load_data

_SETTINGS = 20
"""Maximum number of settings to list in which two experiments differ."""


def write_report(
    runs: Sequence[EvaluatedRun],
    folder: str | Path,
    baseline: EvaluatedRun | None = None,
    gates: bool = False,
    disagreements: int | None = None,
) -> list[Path]:
    """Write the report of runs into a folder, replacing files of an earlier report.

    Args:
        runs: At least one run.
        folder: Created if it does not exist.
        baseline: The run whose experiment is listed first and is compared with the others of its data set; by default
            the first of each data set.
        gates: Also draw histograms of the gates, which loads the models.
        disagreements: Also draw this many test mentions that some experiments of a data set link correctly and others
            do not, with their images, which reads the data.

    Returns:
        The files that were written.

    Raises:
        ConfigError: ``disagreements`` is below 1, or no data set has two experiments to compare.
        DataError: A run on the baseline's data set was tested on different mentions.
        MachineError: The disk is full, or the folder is not writable; files of an earlier report are intact.
    """
    folder = Path(folder)
    experiments = group_runs([*([baseline] if baseline is not None else []), *runs])
    significance = _significance(experiments, baseline)  # may fail, so before anything is written
    examples = [] if disagreements is None else list(_disagreements(experiments, disagreements))
    folder.mkdir(parents=True, exist_ok=True)
    plots = [
        (title, note, save(figure, folder / f"{name}.png"))
        for title, note, name, figure in _figures(experiments, gates)
        if figure is not None
    ]
    plots += [(title, note, save(figure, folder / f"{name}.png", True)) for title, note, name, figure in examples]
    rows = rows_of(experiments)
    parts = [
        "# Report",
        "Test results in percent (MR: mean rank), mean ± standard deviation over seeds. Results are only comparable on "
        "the same inputs, which each row lists.",
        *(f"**{sentence}**" for sentence in (*unlike_inputs(rows), *_repeated_seeds(experiments))),
        markdown(rows),
        *_settings(experiments),
        *_calibrated(experiments),
        *significance,
        *(f"## {title}\n\n{note}\n\n![{cell(title)}]({file.name})" for title, note, file in plots),
        _runs(experiments),
    ]
    write_run_file(folder / "report.csv", as_csv(rows).encode())
    write_run_file(folder / "report.md", ("\n\n".join(part.strip() for part in parts) + "\n").encode())
    return [folder / "report.md", folder / "report.csv", *(file for _, _, file in plots)]


def _figures(experiments: Sequence[Experiment], gates: bool) -> Iterator[tuple[str, str, str, Figure | None]]:
    """Title, note, file name and figure of each plot."""
    note = "One line per run; a dot marks the epoch of the tested checkpoint."
    yield "Validation MRR by epoch", note, "mrr_by_epoch", curves_figure(experiments)
    note = "Validation split; one line per score and run."
    yield "H@1 of each unit by epoch", note, "units_by_epoch", unit_curves_figure(experiments)
    note = "Test split; error bars are the standard deviation over seeds."
    yield "H@1 by experiment", note, "hits", hits_figure(experiments)
    note = "Dotted: original input."
    for experiment in experiments:
        file = f"robustness_{_file_name(experiment.name)}"
        yield f"Robustness of {experiment.name}", note, file, robustness_figure(experiment)
    note = (
        "First run of each experiment. Softmax: the answer is the first candidate, its confidence the probability in "
        "the softmax of the overall scores over the stored candidates, not over the whole knowledge base. Held out, "
        "after mimic-pl calibrate: each mention as it is, and once more without its golds in the knowledge base; the "
        "calibrated answer is the first candidate or NIL. The expected calibration error is the mean difference of "
        "confidence and accuracy over ten bins."
    )
    yield "Calibration", note, "calibration", reliability_figure(experiments)
    note = (
        "First run of each experiment. Only the most confident answers are given, so many that the fraction on the "
        "horizontal axis is answered. A small area under the curve means that errors are the least confident answers."
    )
    yield "Risk and coverage", note, "risk_coverage", risk_coverage_figure(experiments)
    if not gates:
        return
    note = "Gates of the first run on test mentions. A gate is closed at 0 and fully open at -1 or 1."
    for experiment in experiments:
        yield f"Gates of {experiment.name}", note, f"gates_{_file_name(experiment.name)}", gates_figure(experiment)


def _disagreements(experiments: Sequence[Experiment], count: int) -> Iterator[tuple[str, str, str, Figure]]:
    """Title, note, file name and figure of the mentions that the experiments of each data set do not agree on."""
    compared = [[first, *others] for first, others in _by_dataset(experiments) if others]
    if not compared:
        raise ConfigError(
            "--disagreements compares experiments on one data set, and there is only one. Give runs of another "
            "configuration, or omit it."
        )
    for own in compared:
        chosen = find_disagreements(own, count)
        if chosen:
            note = (
                "Test mentions, their gold, and the first candidate of the first run of each experiment. Mentions are "
                "grouped by which experiments are right, the largest group first."
            )
            data = load_data(own[0].runs[0].folder).ranked
            figure = disagreements_figure(own, data, chosen)
            name = own[0].dataset
            yield f"Disagreements on {name}", note, f"disagreements_{_file_name(name)}", figure


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _repeated_seeds(experiments: Sequence[Experiment]) -> Iterator[str]:
    for experiment in experiments:
        repeated = sorted({seed for seed in experiment.seeds if experiment.seeds.count(seed) > 1})
        if repeated:
            yield (
                f"{cell(experiment.name)} has several runs of seed {', '.join(repeated)}; all are included, so its "
                "standard deviation is less meaningful."
            )


def _settings(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Section of the settings in which experiments differ from the first one of their data set."""
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
        head = ["| experiment | setting | value | instead of |", "|---|---|---|---|"]
        yield "## Differences in settings\n\n" + "\n".join((*head, *lines))


def _calibrated(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Section of the answers of calibrated runs, with golds in and out of the knowledge base."""
    columns = {"accuracy": "right", "ece": "ECE", "aurc": "AURC", "nil_f1": "NIL F1"}
    columns |= {"nil_precision": "NIL precision", "nil_recall": "NIL recall"}
    lines = []
    for experiment in experiments:
        for run in experiment.runs:
            for cases in ("given", "held_out"):
                for kind, own in run.summary.get("calibration", {}).get(cases, {}).items():
                    texts = [cell(experiment.name), cell(run.seed), cases.replace("_", " "), kind]
                    figures = [f"{own['nil_mentions']:,}", *(percent(own.get(name)) for name in columns)]
                    lines.append(f"| {' | '.join([*texts, *figures])} |")
    if lines:
        yield (
            "## Answers with NIL\n\nTest mentions as given, and held out: each mention once more, after its golds were "
            "taken out of the knowledge base. Softmax never answers NIL. ECE: expected calibration error. AURC: area "
            "under the risk-coverage curve. In percent.\n\n"
            + "\n".join(
                (
                    f"| experiment | seed | mentions | confidence | NIL mentions | {' | '.join(columns.values())} |",
                    "|---" * 4 + "|---:" * (1 + len(columns)) + "|",
                    *lines,
                )
            )
        )


def _significance(experiments: Sequence[Experiment], baseline: EvaluatedRun | None) -> list[str]:
    """Section of significance tests; empty unless a data set has two experiments."""
    lines = []
    for first, others in _by_dataset(experiments):
        requested = baseline is not None and any(run.folder == baseline.folder for run in first.runs)
        for other in others:
            try:
                found = compare(*([run.predictions for run in e.runs] for e in (other, first)))
            except DataError as error:
                if requested:
                    raise DataError(f"{other.name} cannot be compared with {first.name}. {error}") from error
                lines.append(f"| {cell(other.name)} | {cell(first.name)} | not compared: {cell(error)} | | | |")
                continue
            hits, mrr = _difference(found["hits@1"]), _difference(found["mrr"])
            lines.append(f"| {cell(other.name)} | {cell(first.name)} | {hits} | {mrr} |")
    if not lines:
        return []
    text = (
        "## Significance\n\nDifferences in percentage points with 95 % confidence intervals and two-sided p-values: "
        f"paired bootstrap over test mentions ({RESAMPLES:,} resamples; Koehn 2004, Berg-Kirkpatrick et al. 2012). "
        "With several seeds, the value of a mention is its mean: intervals cover variation over mentions, not seeds. "
        "p is not corrected for multiple comparisons."
    )
    head = "| experiment | against | H@1 | p | MRR | p |\n|---|---|---|---|---|---|"
    return ["\n\n".join((text, "\n".join((head, *lines))))]


def _difference(found: Comparison) -> str:
    return (
        f"{100 * found.difference:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f}) | "
        f"{'< 0.001' if found.p < 0.001 else f'{found.p:.3f}'}"
    )


def _by_dataset(experiments: Sequence[Experiment]) -> Iterator[tuple[Experiment, list[Experiment]]]:
    """First experiment and the others of each data set."""
    for dataset in dict.fromkeys(experiment.dataset for experiment in experiments):
        first, *others = [experiment for experiment in experiments if experiment.dataset == dataset]
        yield first, others


def _runs(experiments: Sequence[Experiment]) -> str:
    """Section that lists every run."""
    lines = ["## Runs", "", "| experiment | seed | H@1 | MRR | checkpoint | folder |", "|---|---|---:|---:|---|---|"]
    for experiment in experiments:
        for run in experiment.runs:
            overall = run.metrics["overall"]
            checkpoint = Path(run.summary.get("checkpoint") or "none").name
            figures = f"{percent(overall['hits@1'])} | {percent(overall.get('mrr'))}"
            cells = [cell(experiment.name), cell(run.seed), figures, cell(checkpoint), _relative(run.folder)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _relative(folder: Path) -> str:
    """Path of a run, relative to the working directory if it is inside it."""
    here = Path.cwd()
    return cell((folder.relative_to(here) if folder.is_relative_to(here) else folder).as_posix())
