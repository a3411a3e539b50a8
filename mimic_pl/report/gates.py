"""Gate values of the units on test mentions, computed with the loaded model."""

from __future__ import annotations

import random

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mimic_pl.figures import legend_below, line_style, panels
from mimic_pl.linking.attention_and_gates import pair_gates
from mimic_pl.report.experiments import Experiment
from mimic_pl.report.loaded import LoadedRun

MENTIONS = 2_000
"""Maximum number of test mentions."""

CLOSED = 0.05
"""Absolute value below which a gate is considered closed."""

SEED = 0

Gates = dict[str, dict[str, NDArray[np.float32]]]
"""Values of each gate (``vision, entity to mention``) by the entities they were computed for (``gold entities``)."""


def gates_of(loaded: LoadedRun) -> Gates:
    """Gate values of test mentions, paired with their golds and with random entities.

    At most :data:`MENTIONS` mentions with a gold in the knowledge base are sampled; of several golds the first is used.
    Empty if no unit has a gate.
    """
    generator = random.Random(SEED)
    indices = [index for index in loaded.mention_indices if loaded.golds(index)]
    indices = sorted(generator.sample(indices, min(MENTIONS, len(indices))))
    if not indices:
        return {}
    mentions = loaded.mentions(indices).features
    golds = loaded.entities([loaded.golds(index)[0] for index in indices]).features
    others = loaded.entities(generator.choices(range(len(loaded.data.entities)), k=len(indices))).features
    found: Gates = {}
    for title, entities in (("gold entities", golds), ("random entities", others)):
        for name, values in pair_gates(loaded.model.matcher, mentions, entities).items():
            found.setdefault(name, {})[title] = values.numpy()
    return found


def gates_figure(experiment: Experiment) -> Figure | None:
    """Histograms of the gates of an experiment's first run; None without gates or without a model."""
    if not experiment.runs[0].config.get("model"):
        return None
    found = gates_of(LoadedRun(experiment.runs[0]))
    if not found:
        return None
    colours = {"gold entities": line_style(0)[0], "random entities": line_style(1)[0]}
    figure, axes = panels(len(found), width=4.4)
    for (name, values), axis in zip(found.items(), axes, strict=True):
        closed = []
        for title, gates in values.items():
            weights = np.full(len(gates), 100 / len(gates))
            axis.hist(
                gates, np.linspace(-1, 1, 41).tolist(), weights=weights, histtype="stepfilled", alpha=0.55, label=title,
                color=colours[title],
            )  # fmt: skip
            closed.append(f"{100 * (np.abs(gates) < CLOSED).mean():.1f} % of {title}")
        axis.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), xlabel="gate", ylabel="fraction in %")
        axis.set_title(f"{name}\nclosed (|gate| < {CLOSED}): " + ",\n".join(closed), fontsize=9)
    legend_below(figure, axes)
    return figure
