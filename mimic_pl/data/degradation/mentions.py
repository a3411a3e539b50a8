"""Records made worse: images that are beside the point or lacking, sentences cut off, misspelt or lacking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from mimic_pl.data.degradation.base import Degradation, ShareDegradation
from mimic_pl.errors import DataError
from mimic_pl.records import Mention


class OtherImage(ShareDegradation):
    """The strength is the share of mentions that get the image of another mention, which has none of their golds."""

    kind = "other_image"
    side = "image"

    def touched(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention beside another one's image.

        Raises:
            DataError: No other mention has one that is beside the point.
        """
        start = rng.randrange(len(split))
        for step in range(len(split)):
            other = split[(start + step) % len(split)]
            if other.image and other.image != mention.image and not {*other.golds} & {*mention.golds}:
                return replace(mention, image=other.image)
        raise DataError(
            f"There is no other image for mention {mention.id!r} ({mention.mention!r}): none of the {len(split)} "
            "mentions of its split has an image of its own and another gold. Leave this kind of degradation out."
        )


class NoImage(ShareDegradation):
    """The strength is the share of mentions that lose their image."""

    kind = "no_image"
    side = "image"

    def touched(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention without an image."""
        return replace(mention, image=None)


class Truncation(Degradation):
    """The strength is the share of a sentence's characters that are cut off at its end."""

    kind = "truncation"
    side = "text"

    def mention(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention in what is left of its sentence."""
        kept = round((1 - self.strength) * len(mention.sentence))
        return replace(mention, sentence=mention.sentence[:kept])


class Typos(Degradation):
    """The strength is the share of letters and digits that are mistyped, in the mentioned words and in the sentence.

    A mistyped character changes places with the next, is left out, or is doubled. The words are mistyped apart from
    where they stand in the sentence.
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
        # Drawn for every character, whether it is used or not: a larger share has the typos of a smaller one.
        drawn = [(rng.random(), rng.choice(("swap", "drop", "double"))) for _ in text]
        result: list[str] = []
        place = 0
        while place < len(text):
            (chance, typo), character = drawn[place], text[place]
            place += 1
            if chance >= self.strength or not character.isalnum():
                result.append(character)
            elif typo == "swap":
                result += [*text[place : place + 1], character]
                place += 1
            elif typo == "double":
                result += [character, character]
        return "".join(result)


class MissingSentence(ShareDegradation):
    """The strength is the share of mentions that stand without their sentence."""

    kind = "missing_sentence"
    side = "text"

    def touched(self, mention: Mention, split: Sequence[Mention], rng: Random) -> Mention:
        """The mention alone."""
        return replace(mention, sentence="")
