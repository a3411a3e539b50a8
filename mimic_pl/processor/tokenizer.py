"""Texts -> token ids, as the text tower of one checkpoint takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mimic_pl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS_PER_TOKEN = 1000
"""No more of a text is read: a tokenizer splits a whole text, at 600 bytes of memory a character, before it discards
all but the first tokens."""


class TextTokenizer:
    """Pads or truncates every text to one length with a checkpoint's tokenizer.

    Args:
        tokenizer: The checkpoint's tokenizer; it must pad on the right.
        text_length: Tokens that every text is padded or truncated to (40 in the paper).

    Raises:
        ConfigError: The tokenizer cannot pad, or pads on the left.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_length: int) -> None:
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no padding token, and texts are padded to "
                f"{text_length} tokens. Choose a checkpoint whose tokenizer names one (pad_token)."
            )
        if tokenizer.padding_side != "right":
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path!r} pads on the {tokenizer.padding_side}; mimic-pl needs "
                "padding on the right. Set padding_side to 'right' in its tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        self.text_length = text_length

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize a batch of texts.

        Returns:
            ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), int64 ``[batch, text_length]``.
        """
        longest = self.text_length * _CHARACTERS_PER_TOKEN
        encoded = self.tokenizer(
            [text[:longest] for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def words(self, ids: Tensor) -> list[str]:
        """The tokens of one text as text, ``[text_tokens]``."""
        return list(self.tokenizer.convert_ids_to_tokens(ids.tolist()))
