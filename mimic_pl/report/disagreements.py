"""Test mentions that some experiments link correctly and others do not, and a figure of them with their images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mimic_pl.data import MELDataModule
from mimic_pl.errors import DataError
from mimic_pl.escaping import printable, shortened
from mimic_pl.evaluated_run import Record, read_records
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.report.experiments import Experiment

_PIXELS = 160
"""Longer side of an image, in pixels."""

_COLUMN, _ROW = 1.6, 1.75
"""Size of a cell in inches."""

_SENTENCE = 180
_NAME = 38
"""Maximum number of characters of a sentence and of an entity's name."""

_CAPTION = 24
"""Characters of a line above or below an image."""

_RIGHT, _WRONG = "#009e73", "#d55e00"


@dataclass(frozen=True)
class Disagreement:
    """A test mention whose gold some experiments rank first and others do not.

    Attributes:
        index: Index in the test split.
        records: The prediction of the first run of each experiment.
    """

    index: int
    records: tuple[Record, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each experiment ranks a gold first."""
        return tuple(record["rank"]["overall"] == 1 for record in self.records)


def find_disagreements(experiments: Sequence[Experiment], count: int) -> list[Disagreement]:
    """Choose mentions that the first runs of the experiments do not agree on.

    Mentions are grouped by which of the experiments are right. The groups take turns, the largest first, and each gives
    mentions that are spread evenly over the test split, so that the choice depends on nothing but the predictions.

    Args:
        experiments: At least two, of one data set.
        count: Maximum number of mentions.

    Raises:
        ConfigError: ``count`` is below 1.
        DataError: The experiments were tested on different mentions.
    """
    require_ranges({"disagreements": COUNT}, {"disagreements": count}, "")
    tested = [list(read_records(experiment.runs[0].folder)) for experiment in experiments]
    ids = [[record["id"] for record in records] for records in tested]
    for experiment, own in zip(experiments, ids, strict=True):
        if own != ids[0]:
            raise DataError(
                f"{experiment.name} was tested on other mentions than {experiments[0].name}, so there is nothing to "
                "compare. Give runs that were tested on the same split, or omit --disagreements."
            )
    groups: dict[tuple[bool, ...], list[Disagreement]] = {}
    for index, records in enumerate(zip(*tested, strict=True)):
        found = Disagreement(index, records)
        if len(set(found.right)) > 1:
            groups.setdefault(found.right, []).append(found)
    sizes = _turns([len(group) for group in groups.values()], count)
    chosen = [
        [group[place * len(group) // size] for place in range(size)]
        for group, size in zip(groups.values(), sizes, strict=True)
        if size
    ]
    largest_first = sorted(chosen, key=lambda group: -len(groups[group[0].right]))
    return [disagreement for group in largest_first for disagreement in group]


def _turns(available: Sequence[int], count: int) -> list[int]:
    """How many each group gives if they take turns, the largest first, until there are ``count``."""
    given = [0] * len(available)
    order = sorted(range(len(available)), key=lambda group: -available[group])
    while sum(given) < min(count, sum(available)):
        for group in order:
            if given[group] < available[group] and sum(given) < count:
                given[group] += 1
    return given


def disagreements_figure(
    experiments: Sequence[Experiment], data: MELDataModule, chosen: Sequence[Disagreement]
) -> Figure:
    """Draw a row per mention: its image and sentence, its gold, and the first candidate of each experiment.

    Args:
        experiments: Those that the mentions were chosen for.
        data: Their data set.
        chosen: At least one mention, from :func:`find_disagreements`.

    Raises:
        DataError: The test split differs from the one that was tested.
    """
    mentions = data.split_mentions("test")
    columns = 3 + len(experiments)
    figure = Figure(figsize=(_COLUMN * (columns + 1), _ROW * len(chosen)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), columns, squeeze=False, width_ratios=[2.0] + [1.0] * (columns - 1))
    for row, disagreement in zip(grid, chosen, strict=True):
        first = disagreement.records[0]
        if disagreement.index >= len(mentions) or mentions[disagreement.index].id != str(first["id"]):
            raise DataError(
                f"The test split in {data.root} is not the one that {experiments[0].name} was tested on: mention "
                f"{disagreement.index} is not {first['id']}. Test the runs again: mimic-pl test --run "
                f"{experiments[0].runs[0].folder}"
            )
        mention = mentions[disagreement.index]
        _write(row[0], mention.mention, mention.sentence)
        _show(row[1], data.mention_image(mention), "mention")
        golds = [gold["qid"] for gold in first["golds"]]
        _show_entity(row[2], data, golds[0], "gold", "black")
        for axis, experiment, record, right in zip(
            row[3:], experiments, disagreement.records, disagreement.right, strict=True
        ):
            rank = record["rank"]["overall"]
            place = "not in the knowledge base" if rank is None else f"gold: rank {rank}"
            title = f"{shortened(experiment.name, 24)}, {'right' if right else place}"
            _show_entity(axis, data, record["candidates"][0]["qid"], title, _RIGHT if right else _WRONG)
    return figure


def _show_entity(axis: Axes, data: MELDataModule, qid: str, title: str, colour: str) -> None:
    position = data.entities.positions.get(qid)
    if position is None:
        _show(axis, None, title, qid, colour)
    else:
        entity = data.entities[position]
        _show(axis, data.entity_image(entity), title, entity.name, colour)


def _show(axis: Axes, image: Image.Image | None, title: str, below: str = "", colour: str = "black") -> None:
    axis.set_title(textwrap.fill(printable(title), _CAPTION), fontsize=7, color=colour)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(textwrap.fill(shortened(printable(below), _NAME), _CAPTION), fontsize=7, color=colour)
    for spine in axis.spines.values():
        spine.set_color(colour)
    if image is None:
        axis.text(0.5, 0.5, "no image", ha="center", va="center", transform=axis.transAxes, color="#666666", fontsize=7)
        return
    small = image.convert("RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    axis.imshow(small)


def _write(axis: Axes, mention: str, sentence: str) -> None:
    axis.axis("off")
    lines = textwrap.wrap(shortened(printable(sentence), _SENTENCE), 34)
    head = shortened(printable(mention), 34)
    axis.text(0, 0.95, head, fontsize=8, fontweight="bold", va="top", transform=axis.transAxes)
    axis.text(0, 0.78, "\n".join(lines), fontsize=7, va="top", transform=axis.transAxes)
