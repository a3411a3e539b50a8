"""What a degradation is: a change of a mention's record or image, of one kind and one strength."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar, Literal

from PIL import Image

from mimic_pl.errors import ConfigError
from mimic_pl.records import Mention


class Degradation(ABC):
    """Makes the mentions of an evaluation split worse; the knowledge base stays as it is.

    What happens to a mention depends on the seed and on its place in the split alone: batches, workers, processes and
    order change nothing. The same is drawn at every strength, so that a stronger degradation does what a weaker one
    did, and more.

    Args:
        strength: How much worse, from 0, which changes nothing, to :attr:`largest`; each kind says in which unit.
        seed: Decides what is drawn.

    Raises:
        ConfigError: The kind has no such strength.
    """

    kind: ClassVar[str]
    """Its name in tables and files."""

    side: ClassVar[Literal["image", "text"]]
    """What it touches."""

    largest: ClassVar[float] = 1.0
    """The largest strength there is."""

    grades: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)
    """Strengths at which ``mimic-pl robustness`` measures, weakest first."""

    def __init__(self, strength: float, seed: int = 43) -> None:
        if not 0 <= strength <= self.largest:
            raise ConfigError(
                f"{type(self).__name__} has strengths from 0 (nothing changes) to {self.largest:g}, not {strength:g}."
            )
        self.strength = strength
        self.seed = seed

    def __str__(self) -> str:
        """Kind and strength: ``blur 4``."""
        return f"{self.kind} {self.strength:g}"

    @abstractmethod
    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention's record, made worse.

        Args:
            mention: As it was read.
            split: All mentions of its split.
            rng: The mention's own.
        """

    def mentions(self, split: Sequence[Mention]) -> list[Mention]:
        """All records of a split, made worse."""
        return [self.mention(mention, split, self.rng(index)) for index, mention in enumerate(split)]

    def rng(self, index: int) -> Random:
        """The source of what is drawn for the mention at this place in its split."""
        return Random(f"{self.kind} {self.seed} {index}")


class ShareDegradation(Degradation):
    """Touches some mentions wholly and the others not at all; the strength is the share of those touched."""

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention, touched or as it was."""
        return self.touched(mention, split, rng) if rng.random() < self.strength else mention

    @abstractmethod
    def touched(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention's record, made worse."""


class ImageDegradation(Degradation):
    """Touches what is to be seen on the image.

    It is given the image as it was decoded, before it is resized to the model's square.
    """

    side = "image"

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The record as it was."""
        return mention

    @abstractmethod
    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The RGB image, made worse; at strength 0 it is the same, pixel by pixel.

        Args:
            image: At its original size; not to be changed in place.
            rng: The mention's own.
        """
