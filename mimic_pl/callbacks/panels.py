"""TensorBoard panels of sample mentions with their top candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont

from mimic_pl.callbacks.predictions import candidate_lists
from mimic_pl.data.protocol import ImageData, data_of
from mimic_pl.data.table import as_table
from mimic_pl.distributed import ProcessGroup
from mimic_pl.escaping import markdown_text, printable, shortened
from mimic_pl.ranges import COUNT, NATURAL, SEED, in_range
from mimic_pl.records import Entity, Mention

TILE = 128
"""Side of an image in an image strip, in pixels."""
LINE = 14
"""Height of a line of its caption, in pixels."""

NAME = 60
"""Maximum number of characters of a name."""

SENTENCE = 500
"""Maximum number of characters of a sentence."""


class SamplePanels(Callback):
    """Shows sample mentions of the validation split with their top candidates in TensorBoard.

    After each validation, it writes a text panel (``samples``) with mention, sentence, gold, rank and candidates, and
    for each sample an image strip (``sample/0`` ...) of the mention, the gold and the candidates. The samples are drawn
    by ``seed`` and are the same in all epochs. Without a TensorBoardLogger it does nothing.

    Args:
        num_samples: Number of mentions; 0 for none.
        num_candidates: Candidates per mention; at most the model's ``ranker.top_k``.
        seed: Seed of the choice of mentions.

    Raises:
        ConfigError: ``num_samples`` is negative, or ``num_candidates`` less than 1.
    """

    @in_range(num_samples=NATURAL, num_candidates=COUNT, seed=SEED)
    def __init__(self, num_samples: int = 4, num_candidates: int = 5, seed: int = 0) -> None:
        self.num_samples = num_samples
        self.num_candidates = num_candidates
        self.seed = seed
        self._chosen: frozenset[int] = frozenset()
        self._found: dict[int, dict[str, Any]] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the samples."""
        self._found = {}
        self._chosen = frozenset()
        if _logger(trainer) is not None and not trainer.sanity_checking:
            mentions = range(len(data_of(trainer, ImageData).mentions["val"]))
            count = min(self.num_samples, len(mentions))
            self._chosen = frozenset(random.Random(self.seed).sample(mentions, count))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Store the rankings of samples in the batch."""
        if not self._chosen:
            return
        indices = outputs["index"].tolist()
        if self._chosen.isdisjoint(indices):
            return
        ranking = outputs["ranking"]
        candidates = candidate_lists(ranking, data_of(trainer, ImageData).entities, self.num_candidates)
        for row, index in enumerate(indices):
            if index in self._chosen:
                self._found[index] = {
                    "rank": int(ranking.ranks["overall"][row]),
                    "candidates": candidates[row],
                    "positions": ranking.top_entities[row, : self.num_candidates].tolist(),
                }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the panels."""
        if not self._chosen:
            return
        for part in ProcessGroup().gather_objects(self._found):
            self._found |= part
        logger = _logger(trainer)
        if logger is None or not self._found or not trainer.is_global_zero:
            return
        writer = logger.experiment
        data = data_of(trainer, ImageData)
        entities = as_table(data.entities)
        texts = []
        for number, index in enumerate(sorted(self._found)):
            mention, found = data.mentions["val"][index], self._found[index]
            known = (entities.positions[qid] for qid in mention.golds if qid in entities.positions)
            gold = next((entities[position] for position in known), None)
            texts.append(sample_text(mention, gold, found["rank"], found["candidates"]))
            tiles = [(data.mention_image(mention), [f"mention: {mention.mention}"])]
            tiles.append(
                (
                    data.entity_image(gold) if gold else None,
                    [f"gold: {gold.name}", f"rank {found['rank']}"] if gold else ["gold: not in the KB"],
                )
            )
            for place, (position, candidate) in enumerate(
                zip(found["positions"], found["candidates"], strict=True), start=1
            ):
                caption = [f"{place}. {candidate['name']}", f"{candidate['scores']['overall']:.2f}"]
                tiles.append((data.entity_image(entities[position]), caption))
            strip = np.asarray(image_strip(tiles))
            writer.add_image(f"sample/{number}", strip, trainer.global_step, dataformats="HWC")
        writer.add_text("samples", "\n\n".join(texts), trainer.global_step)
        self._found = {}


def sample_text(mention: Mention, gold: Entity | None, rank: int, candidates: Sequence[dict[str, Any]]) -> str:
    """One sample as markdown: its sentence, its gold with rank, and a table of its candidates.

    Args:
        mention: The mention.
        gold: Its gold in the knowledge base, if there is one.
        rank: The gold's rank; 0 without one.
        candidates: Candidates from :func:`~mimic_pl.callbacks.predictions.candidate_lists`.
    """
    answer = f"{_named(gold.name, gold.id)}, rank {rank}" if gold else "not in the knowledge base"
    names = list(candidates[0]["scores"]) if candidates else []
    lines = [
        f"**{_cell(mention.mention)}** in: {_cell(mention.sentence, SENTENCE)}",
        "",
        f"Gold: {answer}",
        "",
        "| | candidate | " + " | ".join(map(_cell, names)) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for place, candidate in enumerate(candidates, start=1):
        mark = " (gold)" if gold is not None and candidate["qid"] == gold.id else ""
        scores = " | ".join(f"{candidate['scores'][name]:.3f}" for name in names)
        lines.append(f"| {place} | {_named(candidate['name'], candidate['qid'])}{mark} | {scores} |")
    return "\n".join(lines)


def image_strip(tiles: Sequence[tuple[Image.Image | None, Sequence[str]]]) -> Image.Image:
    """Put images side by side, each with a caption below.

    Args:
        tiles: Image (``None``: a grey square) and lines of the caption of each tile.
    """
    lines = max(len(caption) for _, caption in tiles)
    strip = Image.new("RGB", (TILE * len(tiles), TILE + LINE * lines + 4), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=11)
    for column, (image, caption) in enumerate(tiles):
        left = column * TILE
        if image is None:
            draw.rectangle((left + 2, 2, left + TILE - 3, TILE - 3), fill=(225, 225, 225))
        else:
            thumbnail = image.copy()
            thumbnail.thumbnail((TILE - 4, TILE - 4))
            strip.paste(thumbnail, (left + (TILE - thumbnail.width) // 2, (TILE - thumbnail.height) // 2))
        for row, text in enumerate(caption):
            draw.text((left + 3, TILE + LINE * row), _truncated(text, font), fill="black", font=font)
    return strip


def _truncated(text: str, font: Any) -> str:
    """Truncate a text to the width of a tile, on one line."""
    text = printable(" ".join(text[:NAME].split()))
    if font.getlength(text) <= TILE - 6:
        return text
    while text and font.getlength(text + "...") > TILE - 6:
        text = text[:-1]
    return text + "..."


def _named(name: str, id: str) -> str:
    return f"{_cell(name)} ({_cell(id)})"


def _cell(text: str, length: int = NAME) -> str:
    return markdown_text(shortened(text, length))


def _logger(trainer: Trainer) -> TensorBoardLogger | None:
    """The run's TensorBoard logger, if any."""
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
