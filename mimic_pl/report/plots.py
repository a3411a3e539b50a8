"""Plots of a report that do not need the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from mimic_pl.calibration import answer_curves
from mimic_pl.calibration.reliability import BINS
from mimic_pl.figures import legend_below, line_style, panels
from mimic_pl.report.confidence import softmax_answers
from mimic_pl.report.experiments import Experiment
from mimic_pl.report.table import units_of


def curves_figure(experiments: Sequence[Experiment]) -> Figure | None:
    """Validation MRR by epoch: a line per run, a colour per experiment, a panel per data set.

    A dot marks the epoch of the tested checkpoint. None if no run has a curve.
    """
    with_curve = [experiment for experiment in experiments if any(run.curve for run in experiment.runs)]
    if not with_curve:
        return None
    sets = list(dict.fromkeys(experiment.dataset for experiment in with_curve))
    figure, axes = panels(len(sets), width=6.4, height=4.2, columns=2)
    for number, experiment in enumerate(with_curve):
        colour, style = line_style(number)
        axis = axes[sets.index(experiment.dataset)]
        label: str | None = experiment.name
        for run in experiment.runs:
            if not run.curve:
                continue
            epochs, values = np.array(run.curve).T
            axis.plot(epochs, 100 * values, style, color=colour, label=label, linewidth=1.4, alpha=0.9)
            label = None  # one legend entry for all seeds
            best = run.best_epoch or 0
            tested = dict(run.curve).get(best)
            if tested is not None:
                axis.plot([best], [100 * tested], "o", color=colour, markersize=5)
    for name, axis in zip(sets, axes, strict=True):
        axis.set(title=name, xlabel="epochs trained", ylabel="validation MRR in %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    return figure


def unit_curves_figure(experiments: Sequence[Experiment]) -> Figure | None:
    """Validation H@1 of the overall score and of each unit by epoch: a panel per experiment, a line per score and run.

    None if no run was validated at least twice.
    """
    shown = [e for e in experiments if any(len(run.hits_curves.get("overall", ())) > 1 for run in e.runs)]
    if not shown:
        return None
    scores = ["overall", *units_of(shown)]
    figure, axes = panels(len(shown), sharey=True)
    for experiment, axis in zip(shown, axes, strict=True):
        for run in experiment.runs:
            for name, curve in run.hits_curves.items():
                colour, style = line_style(scores.index(name))
                epochs, values = np.array(curve).T
                axis.plot(epochs, 100 * values, style, color=colour, label=name, linewidth=1.4, alpha=0.9)
        axis.set(title=experiment.name, xlabel="epochs trained", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("validation H@1 in %")
    legend_below(figure, axes)
    return figure


def hits_figure(experiments: Sequence[Experiment]) -> Figure:
    """H@1 by experiment: bars for the overall score and each unit, with the standard deviation over several seeds.

    There is a panel per data set, with experiments from the top in the given order.
    """
    scores = ["overall", *units_of(experiments)]
    sets = list(dict.fromkeys(experiment.dataset for experiment in experiments))
    longest = max(len(experiment.name) for experiment in experiments)
    bars = [sum(1 + _bars(e, scores) for e in experiments if e.dataset == name) for name in sets]
    figure, axes = panels(len(sets), width=5.2 + 0.07 * longest, height=1.1 + 0.17 * max(bars), columns=2)
    for name, height, axis in zip(sets, bars, axes, strict=True):
        position, ticks = 0.0, []
        for experiment in (experiment for experiment in experiments if experiment.dataset == name):
            ticks.append((position + (_bars(experiment, scores) - 1) / 2, experiment.name))
            for number, score in enumerate(scores):
                mean, spread = experiment.mean(score, "hits@1"), experiment.deviation(score, "hits@1") or 0.0
                if mean is None:
                    continue
                axis.barh(position, 100 * mean, 1.0, label=score, color=line_style(number)[0])
                if spread:
                    axis.errorbar(100 * mean, position, xerr=100 * spread, color="black", capsize=2, linewidth=0.8)
                end = 100 * (mean + spread), position
                axis.annotate(f"{100 * mean:.1f}", end, (3, 0), textcoords="offset points", va="center", fontsize=7)
                position += 1
            position += 1  # a bar's width between experiments
        axis.set(title=name, xlabel="H@1 in %", ylim=(height - 1, -1), xlim=(0, 1.12 * axis.get_xlim()[1]))
        axis.set_yticks(*zip(*ticks, strict=True))
        axis.grid(axis="y", visible=False)
    legend_below(figure, axes)
    return figure


def _bars(experiment: Experiment, scores: Sequence[str]) -> int:
    """Number of the scores that an experiment has."""
    return sum(experiment.mean(score, "hits@1") is not None for score in scores)


def robustness_figure(experiment: Experiment) -> Figure | None:
    """H@1 by strength of degradation: a panel per kind, a line per score, means over the runs.

    Dotted lines are the results at strength 0. None if no run of the experiment has a ``robustness.json``.
    """
    runs = [run for run in experiment.runs if run.robustness]
    if not runs:
        return None
    records = [record for run in runs for record in run.robustness]
    kinds = list(dict.fromkeys((record["side"], record["kind"]) for record in records))
    scores = list(dict.fromkeys(score for record in records for score in record["metrics"]))
    figure, axes = panels(len(kinds), sharey=True)
    for (side, kind), axis in zip(kinds, axes, strict=True):
        for number, score in enumerate(scores):
            strengths, means = _by_strength([r for r in records if (r["side"], r["kind"]) == (side, kind)], score)
            axis.plot(strengths, means, "o-", label=score, color=line_style(number)[0], markersize=4)
            if means and strengths[0] == 0:
                axis.axhline(means[0], color=line_style(number)[0], linestyle=":", linewidth=1)
        axis.xaxis.set_major_locator(MaxNLocator(5) if len(strengths) > 1 else FixedLocator(strengths))
        axis.set(title=f"{kind} ({side})", xlabel="strength", ylim=(0, None))
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("H@1 in %")
    legend_below(figure, axes)
    return figure


def reliability_figure(experiments: Sequence[Experiment]) -> Figure | None:
    """Reliability diagrams of the first run of each experiment.

    A panel for the softmax over the stored candidates; for a calibrated run two more, by softmax and by calibration, of
    test mentions with and without their golds in the knowledge base. Blue bars are accuracy, the diagonal is perfect
    calibration, grey steps are the fraction of mentions in each bin. None if no run has two candidates, since the
    confidence in a single one is always 1.
    """
    shown = []
    for experiment in _with_candidates(experiments):
        run = experiment.runs[0]
        curves = answer_curves(softmax_answers(run.predictions))
        title = f"{experiment.name}, softmax of {run.predictions.top.shape[1]}"
        shown.append((title, np.array(curves["reliability"])))
        shown += [
            (f"{experiment.name}, held out, {kind}", own["reliability"]) for kind, own in run.held_out_curves.items()
        ]
    if not shown:
        return None
    figure, axes = panels(len(shown), width=3.6, height=3.6)
    for (title, rows), axis in zip(shown, axes, strict=True):
        confidence, accuracy, share = rows.T
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        axis.bar(
            place / BINS, accuracy, 1 / BINS, align="edge", color=line_style(0)[0], edgecolor="white", label="accuracy"
        )
        shares = np.zeros(BINS)
        shares[place] = share
        edges = np.linspace(0, 1, BINS + 1)
        axis.stairs(shares, edges, color="#444444", linewidth=1.2, label="fraction of all mentions")
        axis.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
        error = float(np.abs(accuracy - confidence) @ share)
        axis.set_title(f"{title}\nexpected calibration error {100 * error:.1f} %", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence in the answer")
    legend_below(figure, axes)
    return figure


def risk_coverage_figure(experiments: Sequence[Experiment]) -> Figure | None:
    """Errors against the fraction of mentions that are answered, the most confident first: a panel per data set.

    Of the first run of each experiment: a line for the softmax over the stored candidates; for a calibrated run also
    lines by softmax (dashed) and by calibration (dotted) of test mentions with and without their golds. None if no run
    has two candidates.
    """
    with_candidates = _with_candidates(experiments)
    if not with_candidates:
        return None
    sets = list(dict.fromkeys(experiment.dataset for experiment in with_candidates))
    figure, axes = panels(len(sets), width=6.4, height=4.2, columns=2)
    for number, experiment in enumerate(with_candidates):
        axis, run = axes[sets.index(experiment.dataset)], experiment.runs[0]
        given = answer_curves(softmax_answers(run.predictions))["risk_coverage"]
        lines = [("softmax", "-", np.array(given))]
        styles = {"softmax": "--", "calibrated": ":"}
        held_out = run.held_out_curves.items()
        lines += [(f"held out, {kind}", styles[kind], own["risk_coverage"]) for kind, own in held_out]
        for name, style, rows in lines:
            coverage, risk = 100 * rows.T
            axis.plot(
                coverage, risk, style, linewidth=1.4, color=line_style(number)[0], label=f"{experiment.name}, {name}"
            )
    for name, axis in zip(sets, axes, strict=True):
        axis.set(title=name, xlabel="mentions answered in %", ylabel="wrong of these in %", xlim=(0, 100))
        axis.set_ylim(0, None)
    legend_below(figure, axes)
    return figure


def _with_candidates(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Those whose first run has stored at least two candidates per mention."""
    return [experiment for experiment in experiments if experiment.runs[0].predictions.top.shape[1] > 1]


def _by_strength(records: Sequence[dict[str, Any]], score: str) -> tuple[list[float], list[float]]:
    """Sorted strengths, and the mean H@1 in percent at each."""
    values: dict[float, list[float]] = {}
    for record in records:
        if "hits@1" in record["metrics"].get(score, {}):
            values.setdefault(float(record["strength"]), []).append(100 * record["metrics"][score]["hits@1"])
    return sorted(values), [float(np.mean(values[strength])) for strength in sorted(values)]
