"""The picture of an explanation: images, attention over words and patches, shares and gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mimic_pl.escaping import printable, shortened
from mimic_pl.figures import COLOURS, line_style
from mimic_pl.linking.attention_and_gates import Token
from mimic_pl.linking.thumbnails import heat_map

if TYPE_CHECKING:
    from mimic_pl.linking.explanation import LinkExplanation

_WIDTH = 11.0
_IMAGES = 2.4
_TOKENS = 0.3
"""Heights of the row of images and of a line of tokens, in inches."""

_NAME = 26
"""Maximum number of characters of an entity's name on an axis."""

_RESOLUTION = 320
"""Longer side of an image, in pixels."""


def draw(explanation: LinkExplanation) -> Figure:
    """Draw the figure, without matplotlib's global state."""
    lines = _lines(explanation.words)
    bars = max(2 + len(explanation.others), len(explanation.gates) + 1)
    has_images = explanation.mention_image is not None or explanation.entity_image is not None
    heights = [_IMAGES] * has_images + [0.3 + _TOKENS * len(lines)] * bool(lines) + [0.9 + 0.3 * bars]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(shortened(explanation.title, 110), fontsize=11)
    rows = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat)
    if has_images:
        _draw_images(list(rows.pop(0).subplots(1, 3)), explanation)
    if lines:
        _draw_words(rows.pop(0).subplots(), lines)
    widths = [3] * bool(explanation.shares) + [3] * bool(explanation.shares and explanation.others)
    widths += [2] * bool(explanation.gates)
    columns = list(rows[0].subplots(1, len(widths), squeeze=False, width_ratios=widths).flat) if widths else []
    if explanation.shares:
        _draw_shares(columns.pop(0), explanation)
    if explanation.shares and explanation.others:
        _draw_leads(columns.pop(0), explanation)
    if explanation.gates:
        _draw_gates(columns.pop(0), explanation.gates)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a name does not start a formula
    return figure


def _draw_images(axes: Sequence[Axes], explanation: LinkExplanation) -> None:
    image, patches = explanation.mention_image, explanation.patches
    _draw_image(axes[0], image, "mention")
    if image is None or patches is None:
        axes[1].remove()
    else:
        outside = f", {patches.rest:.0%} outside" if patches.rest >= 0.005 else ""
        _draw_image(axes[1], heat_map(image, patches.grid, _RESOLUTION), f"attention over patches{outside}")
    _draw_image(axes[2], explanation.entity_image, f"entity {shortened(printable(explanation.entity.name), _NAME)}")


def _draw_image(axis: Axes, image: Image.Image | None, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    if image is None:
        axis.set_facecolor("#e6e6e6")
        axis.text(0.5, 0.5, "no image", ha="center", va="center", transform=axis.transAxes, color="#666666")
        return
    small = image.convert("RGB")
    small.thumbnail((_RESOLUTION, _RESOLUTION))
    axis.imshow(small)


def _lines(tokens: Sequence[Token], length: int = 130) -> list[list[Token]]:
    """Break tokens into lines of about this many characters."""
    lines: list[list[Token]] = []
    left = 0
    for token in tokens:
        width = len(_label(token)) + 2
        if not lines or width > left:
            lines.append([])
            left = length
        lines[-1].append(token)
        left -= width
    return lines


def _label(token: Token) -> str:
    text = shortened(printable(token.text), 40)
    return f"{text} {token.weight:.0%}" if token.kind == "padding" else text


def _draw_words(axis: Axes, lines: Sequence[Sequence[Token]]) -> None:
    """Tokens with a background that is darker for more attention."""
    heaviest = max((token.weight for line in lines for token in line if token.kind != "padding"), default=1.0)
    axis.set_title("attention of the entity's text to the mention's words (darkest: largest weight)", fontsize=9)
    axis.set(xlim=(0, 144), ylim=(len(lines), 0))
    axis.axis("off")
    for row, line in enumerate(lines):
        left = 0.0
        for token in line:
            label = _label(token)
            depth = min(1.0, token.weight / heaviest) if heaviest else 0.0
            style = "italic" if token.kind != "word" else "normal"
            axis.text(
                left + 0.5, row + 0.5, label, fontsize=9, family="monospace", va="center", style=style,
                color="white" if depth > 0.6 else "black",
                bbox={"facecolor": (0, 0.447, 0.698, depth), "edgecolor": "#cccccc", "boxstyle": "round,pad=0.2"},
            )  # fmt: skip
            left += len(label) + 2


def _draw_shares(axis: Axes, explanation: LinkExplanation) -> None:
    """Shares of the units, stacked: those of the entity, and of the others on top."""
    rows = [(f"{explanation.rank}. {_named(explanation.entity.name)}", explanation.shares, explanation.score)]
    others = (place for place in range(1, len(explanation.others) + 2) if place != explanation.rank)
    for place, (id, shares) in zip(others, explanation.others.items(), strict=False):
        name = explanation.names.get(id, id)
        rows.append((f"{place}. {_named(name)}", shares, explanation.ranking.competitors[id]["overall"]))
    units = list(explanation.shares)
    for row, (_, shares, score) in enumerate(rows):
        _stack(axis, row, units, shares, score)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel="share of each unit; black: overall")
    axis.axvline(0, color="#444444", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    if units:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(units), frameon=False, fontsize=8)


def _draw_leads(axis: Axes, explanation: LinkExplanation) -> None:
    """What each unit contributes to the lead of the entity over each of the others, in the rows of the shares."""
    units = list(explanation.shares)
    for row, (id, shares) in enumerate(explanation.others.items(), start=1):
        lead = explanation.score - explanation.ranking.competitors[id]["overall"]
        differences = {unit: explanation.shares[unit] - shares.get(unit, 0.0) for unit in units}
        _stack(axis, row, units, differences, lead)
    axis.set_yticks([])
    axis.set(ylim=(len(explanation.others) + 0.6, -0.6), xlabel="lead over each; black: overall")
    axis.axvline(0, color="#444444", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _stack(axis: Axes, row: int, units: Sequence[str], parts: Mapping[str, float], total: float) -> None:
    """A stacked bar: positive parts to the right of 0, negative ones to the left, and a mark at their sum."""
    right, left = 0.0, 0.0
    for number, unit in enumerate(units):
        part = parts.get(unit, 0.0)
        start = right if part >= 0 else left
        axis.barh(row, part, 0.65, left=start, color=COLOURS[number % len(COLOURS)], label=unit if row == 0 else None)
        right, left = (right + part, left) if part >= 0 else (right, left + part)
    axis.plot([total], [row], "|", color="black", markersize=14, markeredgewidth=2)


def _draw_gates(axis: Axes, gates: dict[str, float]) -> None:
    """Gates as bars from -1 to 1."""
    axis.barh(range(len(gates)), list(gates.values()), 0.5, color=line_style(3)[0])
    axis.set_yticks(range(len(gates)), [printable(name) for name in gates], fontsize=8)
    axis.set(xlim=(-1, 1), ylim=(len(gates) - 0.4, -0.6), xlabel="gate (0: closed)")
    axis.axvline(0, color="#444444", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def _named(name: str) -> str:
    return shortened(printable(name), _NAME)
