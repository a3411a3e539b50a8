"""Degradations of mention records: unrelated or missing images; truncated, misspelt or missing sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from mimic_pl.data.degradation.base import Degradation, ShareDegradation
from mimic_pl.errors import DataError
from mimic_pl.records import Mention


class OtherImage(ShareDegradation):
    """The strength is the fraction of mentions that get the image of another mention, with no gold in common."""

    kind = "other_image"
    side = "image"

    def degraded(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention with another mention's image.

        Raises:
            DataError: No other mention has an unrelated image.
        """
        start = rng.randrange(len(split))
        for step in range(len(split)):
            other = split[(start + step) % len(split)]
            if other.image and other.image != mention.image and not {*other.golds} & {*mention.golds}:
                return replace(mention, image=other.image)
        raise DataError(
            f"There is no unrelated image for mention {mention.id!r} ({mention.mention!r}): none of the {len(split)} "
            "mentions of its split has a different image and a different gold. Omit this degradation."
        )


class NoImage(ShareDegradation):
    """The strength is the fraction of mentions that lose their image."""

    kind = "no_image"
    side = "image"

    def degraded(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention without an image."""
        return replace(mention, image=None)


class Truncation(Degradation):
    """The strength is the fraction of a sentence's characters that are cut off at its end."""

    kind = "truncation"
    side = "text"

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention with its sentence truncated."""
        kept = round((1 - self.strength) * len(mention.sentence))
        return replace(mention, sentence=mention.sentence[:kept])


class Typos(Degradation):
    """The strength is the fraction of letters and digits that are mistyped, in the mention and in the sentence.

    A mistyped character is swapped with the next, dropped, or doubled. The mention is mistyped independently of its
    occurrence in the sentence.
    """

    kind = "typos"
    side = "text"
    grades = (0.05, 0.1, 0.2, 0.4)

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mistyped mention."""
        return replace(
            mention, mention=self.mistyped(mention.mention, rng), sentence=self.mistyped(mention.sentence, rng)
        )

    def mistyped(self, text: str, rng: Random) -> str:
        """The text with typos."""
        # Drawn for every character, used or not, so that a higher strength includes the typos of a lower one.
        drawn = [(rng.random(), rng.choice(("swap", "drop", "double"))) for _ in text]
        result: list[str] = []
        position = 0
        while position < len(text):
            (chance, typo), character = drawn[position], text[position]
            position += 1
            if chance >= self.strength or not character.isalnum():
                result.append(character)
            elif typo == "swap":
                result += [*text[position : position + 1], character]
                position += 1
            elif typo == "double":
                result += [character, character]
        return "".join(result)


class MissingSentence(ShareDegradation):
    """The strength is the fraction of mentions that lose their sentence."""

    kind = "missing_sentence"
    side = "text"

    def degraded(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention without its sentence."""
        return replace(mention, sentence="")
