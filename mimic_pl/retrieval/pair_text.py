"""Texts of a mention and an entity, as a cross-encoder reads them side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mimic_pl.processor.template import TextTemplate
from mimic_pl.records import Entity, Mention

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "[ ", " ]"
"""Marks around the mention in its sentence: texts that every tokenizer knows."""

_CHARACTERS_PER_TOKEN = 50
"""Longer texts are cut before tokenization, which takes memory for the whole text."""


def marked_mention(mention: Mention) -> tuple[str, int, int]:
    """The sentence with the mention marked, and start and end of the marked mention in it.

    A mention without offsets is marked where it first occurs; one that does not occur is put in front.

    Example:
        >>> marked_mention(Mention.of({"mention": "Adams", "sentence": "Then Adams wrote."}))
        ('Then [ Adams ] wrote.', 5, 14)
    """
    sentence, word = mention.sentence, mention.mention
    start, end = mention.span or (-1, -1)
    if mention.span is None and word:
        start = sentence.find(word)
        end = start + len(word)
    if start < 0:
        sentence, start, end = f"{word} {sentence}", 0, len(word)
    marked = f"{OPEN}{sentence[start:end]}{CLOSE}"
    return sentence[:start] + marked + sentence[end:], start, start + len(marked)


class PairText:
    """Formats pairs of a mention and an entity.

    Args:
        tokenizer: Counts the tokens.
        mention_template: Text of a mention from ``{sentence}``, in which the mention is marked, ``{mention}`` and any
            other field of its record.
        entity_template: Text of an entity, from ``{name}``, ``{attr}`` and any other field of its record.
        mention_tokens: Largest number of tokens of the sentence. Of a longer one, the part around the mention is kept.
        max_tokens: Largest number of tokens of the pair; longer entities are cut.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mention_template: str,
        entity_template: str,
        mention_tokens: int,
        max_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.mention_template = TextTemplate(mention_template)
        self.entity_template = TextTemplate(entity_template)
        self.mention_tokens = mention_tokens
        self.max_tokens = max_tokens

    def mention(self, mention: Mention) -> str:
        """Text of a mention."""
        return self.mention_template(replace(mention, sentence=self._window(*marked_mention(mention))))

    def entity(self, entity: Entity) -> str:
        """Text of an entity."""
        return self.entity_template(entity)[: self.max_tokens * _CHARACTERS_PER_TOKEN]

    def _window(self, text: str, start: int, end: int) -> str:
        """The part of a text around a span that has ``mention_tokens`` tokens, about equally many on both sides."""
        reach = self.mention_tokens * _CHARACTERS_PER_TOKEN
        first = max(0, start - reach)
        end = min(end, start + reach)
        text, start, end = text[first : end + reach], start - first, end - first
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        spare = self.mention_tokens
        if len(offsets) <= spare:
            return text
        inside = [token for token, (left, right) in enumerate(offsets) if left < end and right > start]
        low, high = (inside[0], inside[-1] + 1) if inside else (0, 0)  # characters that are no tokens
        spare = max(0, spare - (high - low))
        before = min(low, max(spare // 2, spare - (len(offsets) - high)))
        low, high = low - before, min(len(offsets), high + spare - before)
        high = min(high, low + self.mention_tokens)
        return text[offsets[low][0] : offsets[high - 1][1]]
