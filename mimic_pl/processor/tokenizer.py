"""Tokenizes texts for the text tower of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mimic_pl.errors import ConfigError
from mimic_pl.ranges import COUNT, in_range

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS_PER_TOKEN = 1000
"""Longer texts are cut before tokenization: a tokenizer processes the whole text, at 600 bytes of memory per character,
before it truncates the tokens."""


class TextTokenizer:
    """Tokenizes texts with a checkpoint's tokenizer, padded or truncated to one length.

    Args:
        tokenizer: The checkpoint's tokenizer.
        text_length: Number of tokens of every text (40 in the paper).
        vocabulary_size: Number of tokens that the model knows.

    Raises:
        ConfigError: The tokenizer cannot pad.
    """

    @in_range(text_length=COUNT, vocabulary_size=COUNT)
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, text_length: int, vocabulary_size: int | None = None
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no padding token, but texts are padded to "
                f"{text_length} tokens. Choose a checkpoint whose tokenizer has one (pad_token)."
            )
        self.tokenizer = tokenizer
        self.text_length = text_length
        self.vocabulary_size = vocabulary_size

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize a batch of texts.

        Returns:
            ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), int64 ``[batch, text_length]``.

        Raises:
            ConfigError: The tokenizer fails, or does not belong to the model.
        """
        longest = self.text_length * _CHARACTERS_PER_TOKEN
        try:
            encoded = self.tokenizer(
                [text[:longest] for text in texts],
                padding="max_length",
                truncation=True,
                max_length=self.text_length,
                padding_side="right",  # tokenizers of decoders pad on the left
                return_attention_mask=True,  # some, such as SigLIP's, return none by default
                return_tensors="pt",
            )
        except BaseException as error:
            # The tokenizers package raises plain Exceptions, and panics, which are not Exceptions.
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            raise ConfigError(
                f"The tokenizer of {self.tokenizer.name_or_path!r} fails on a text: {error}. Its tokenizer.json is "
                "damaged or incomplete: get the checkpoint again."
            ) from error
        ids: Tensor = encoded["input_ids"]
        if self.vocabulary_size is not None and ids.numel() and int(ids.max()) >= self.vocabulary_size:
            raise ConfigError(
                f"The tokenizer of {self.tokenizer.name_or_path!r} produces the token {int(ids.max())}, but the model "
                f"knows only {self.vocabulary_size} tokens. They belong to different models: get the checkpoint again."
            )
        return ids, encoded["attention_mask"]

    def words(self, ids: Tensor) -> list[str]:
        """The tokens of one text ``[text_tokens]`` as strings."""
        return list(self.tokenizer.convert_ids_to_tokens(ids.tolist()))
