"""A plot of a retriever's recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mimic_pl.figures import legend_below, line_style, panels
from mimic_pl.linking.recall import Recall


def recall_figure(measured: Mapping[str, Sequence[Recall]], wanted: float, mentions: str) -> Figure:
    """Recall of the exact first and the exact first ten by the number of candidates, a colour per retriever.

    Args:
        measured: Measurements by the retriever's name.
        wanted: Recall of the first that is wanted, a horizontal line.
        mentions: What was measured on, for the title.
    """
    figure, (axis,) = panels(1, width=6.4, height=4.2)
    for number, (name, curve) in enumerate(measured.items()):
        colour, _ = line_style(number)
        ks = [recall.k for recall in curve]
        axis.plot(ks, [100 * recall.first for recall in curve], "o-", color=colour, label=f"{name}, exact first")
        axis.plot(ks, [100 * recall.ten for recall in curve], "s--", color=colour, label=f"{name}, exact first ten")
    axis.axhline(100 * wanted, color="black", linestyle=":", linewidth=1, label="wanted")
    axis.set(title=mentions, xlabel="k: candidates per channel", ylabel="found in %", xscale="log")
    ticks = sorted({recall.k for curve in measured.values() for recall in curve})
    axis.set_xticks(ticks, [f"{k:,}" for k in ticks])  # powers of ten would be formulas, which figures do not parse
    axis.xaxis.set_minor_locator(NullLocator())
    legend_below(figure, [axis])
    return figure
