"""Figures without matplotlib's global state: no pyplot, no display, the same on every machine."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#444444")
"""Told apart by people with colour blindness as well (Okabe and Ito), and two more."""

_COLOURS_KEPT = 128
"""Of a saved figure."""

STYLES = ("-", "--", "-.", ":")
"""Lines that share a colour differ in these."""


def panels(
    count: int, width: float = 4.2, height: float = 3.4, columns: int = 3, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of several panels.

    Args:
        count: How many.
        width: Of a panel, in inches.
        height: Of a panel, in inches.
        columns: Panels beside each other at most.
        sharey: One scale for all vertical axes.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    axes: list[Axes] = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for used in axes[:count]:
        used.spines[["top", "right"]].set_visible(False)
        used.grid(alpha=0.3, linewidth=0.6)
        used.set_axisbelow(True)
    return figure, axes[:count]


def look(number: int) -> tuple[str, str]:
    """Colour and line style of the n-th of many."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them, in as many columns as its longest entry leaves."""
    entries: dict[str, Artist] = {}
    for own in axes:
        for handle, label in zip(*own.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if entries:
        inches = 0.5 + 0.08 * max(map(len, entries))
        columns = max(1, min(len(entries), int(figure.get_figwidth() / inches)))
        place = {"ncols": columns, "frameon": False, "fontsize": 9}
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", **place)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG with a palette: lines and flat areas need few colours, and a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    Image.open(drawn).convert("RGB").quantize(_COLOURS_KEPT, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
