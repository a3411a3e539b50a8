"""Figures without matplotlib's global state: no pyplot, no display, reproducible on every machine."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mimic_pl.checkpoints.atomic_io import write_run_file

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#444444")
"""The colour-blind safe palette of Okabe and Ito, and two more colours."""

_PALETTE_SIZE = 128
"""Number of colours in a saved figure."""

STYLES = ("-", "--", "-.", ":")
"""Line styles that distinguish lines of the same colour."""


def panels(
    count: int, width: float = 4.2, height: float = 3.4, columns: int = 3, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Create a figure with several panels.

    Args:
        count: Number of panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
        columns: Maximum number of panels per row.
        sharey: Use the same scale for all vertical axes.
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


def line_style(number: int) -> tuple[str, str]:
    """Colour and line style of the n-th line."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add one legend for all panels below them, in as many columns as its longest entry allows."""
    entries: dict[str, Artist] = {}
    for own in axes:
        for handle, label in zip(*own.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if entries:
        inches = 0.5 + 0.08 * max(map(len, entries))
        columns = max(1, min(len(entries), int(figure.get_figwidth() / inches)))
        layout = {"ncols": columns, "frameon": False, "fontsize": 9}
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", **layout)


def save(figure: Figure, path: Path, photographs: bool = False) -> Path:
    """Write a figure as a PNG with a palette, which is enough for lines and flat areas and a third of the size.

    Args:
        figure: The figure.
        path: File to write.
        photographs: The figure contains images: no palette.

    Raises:
        MachineError: The disk is full, or the folder is not writable; an earlier file is intact.
    """
    drawn = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # a dollar sign in a run's name does not start a formula
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.savefig(drawn, format="png", dpi=120)
    content = io.BytesIO()
    image = Image.open(drawn).convert("RGB")
    if not photographs:
        image = image.quantize(_PALETTE_SIZE, dither=Image.Dither.NONE)
    image.save(content, format="png", optimize=True)
    write_run_file(path, content.getbuffer())
    return path
