"""Base classes of degradations: changes of a mention's record or image, with a strength."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar, Literal

from PIL import Image

from mimic_pl.ranges import SEED, Range, in_range, require_ranges
from mimic_pl.records import Mention


class Degradation(ABC):
    """Degrades the mentions of an evaluation split; the knowledge base is unchanged.

    The degradation of a mention depends only on the seed and on its index in the split, not on batches, workers,
    processes or order. The random numbers are the same at every strength, so that a stronger degradation includes the
    changes of a weaker one.

    Args:
        strength: Strength, from 0 (no change) to :attr:`largest`; each kind defines its unit.
        seed: Random seed.

    Raises:
        ConfigError: The strength is out of range.
    """

    kind: ClassVar[str]
    """Its name in tables and files."""

    side: ClassVar[Literal["image", "text"]]
    """The modality that it degrades."""

    largest: ClassVar[float] = 1.0
    """Maximum strength."""

    grades: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)
    """Strengths at which ``mimic-pl robustness`` evaluates, weakest first."""

    @in_range(seed=SEED)
    def __init__(self, strength: float, seed: int = 43) -> None:
        allowed = Range(0, self.largest, whole=False)
        require_ranges({"strength": allowed}, {"strength": strength}, f"{type(self).__name__}: ")
        self.strength = strength
        self.seed = seed

    def __str__(self) -> str:
        """Kind and strength: ``blur 4``."""
        return f"{self.kind} {self.strength:g}"

    @abstractmethod
    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The degraded record of a mention.

        Args:
            mention: The original mention.
            split: All mentions of its split.
            rng: Random generator of this mention.
        """

    def mentions(self, split: Sequence[Mention]) -> list[Mention]:
        """The degraded records of a split."""
        return [self.mention(mention, split, self.rng(index)) for index, mention in enumerate(split)]

    def rng(self, index: int) -> Random:
        """The random generator of the mention at this index of its split."""
        return Random(f"{self.kind} {self.seed} {index}")


class ShareDegradation(Degradation):
    """Fully degrades some mentions and leaves the others unchanged; the strength is the fraction of degraded ones."""

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention, degraded or unchanged."""
        return self.degraded(mention, split, rng) if rng.random() < self.strength else mention

    @abstractmethod
    def degraded(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The degraded record of a mention."""


class ImageDegradation(Degradation):
    """Degrades the content of the image, after decoding and before resizing to the model's square."""

    side = "image"

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The unchanged record."""
        return mention

    @abstractmethod
    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The degraded RGB image; identical at strength 0.

        Args:
            image: The image in its original size; it must not be changed in place.
            rng: Random generator of its mention.
        """
