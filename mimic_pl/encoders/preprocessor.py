"""Raw text and images -> model inputs, with the settings of the model's own checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mimic_pl.errors import ConfigError

_CHARACTERS_PER_TOKEN = 1000
"""No more of a text is looked at: a tokenizer takes a whole text apart, in 600 bytes of memory a character, before it
lets go of all but the first tokens."""

_IN_CACHE = 8
"""Images that are normalised at once on a CPU: 5 MB at 224 x 224."""


class Preprocessor:
    """Tokenizes texts and turns images into pixels for one encoder, which builds it and owns it.

    The data module takes it from the model, so that tokenizer, image size, mean and deviation cannot disagree with
    the weights. It is picklable: loader workers carry it.

    Args:
        tokenizer: The checkpoint's tokenizer; it must pad on the right.
        text_length: Tokens that every text is padded or truncated to (40 in the paper).
        image_size: Side of the model's square input, in pixels.
        image_mean: Mean per colour channel of the checkpoint's training images, in [0, 1].
        image_std: Deviation per colour channel, in [0, 1].

    Raises:
        ConfigError: The tokenizer cannot pad, or pads on the left.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_length: int,
        image_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ) -> None:
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
        self.image_size = image_size
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize a batch of texts.

        Returns:
            ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), int64 ``[batch, text_length]``.
        """
        most = self.text_length * _CHARACTERS_PER_TOKEN
        texts = [text[:most] for text in texts]
        encoded = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize an RGB image straight to the model's square, as published (Lanczos, aspect ratio not kept).

        Returns:
            uint8 ``[3, image_size, image_size]``.
        """
        square = image.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: Tensor, has_image: Tensor) -> Tensor:
        """Normalise pixels with the checkpoint's mean and deviation, on the device where they are.

        Args:
            pixels: uint8 ``[batch, 3, image_size, image_size]``.
            has_image: bool ``[batch]``; where false the result is zeros *after* normalisation, as published.

        Returns:
            float32 ``[batch, 3, image_size, image_size]``.
        """
        mean = torch.tensor(self.image_mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.image_std, device=pixels.device).view(1, 3, 1, 1)
        normalized = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        # In place and a few at a time: on a CPU temporaries of a batch's size cost far more than the arithmetic.
        at_once = _IN_CACHE if pixels.device.type == "cpu" else max(1, len(pixels))
        for start in range(0, len(pixels), at_once):
            part = normalized[start : start + at_once].copy_(pixels[start : start + at_once])
            part.div_(255).sub_(mean).div_(std)
        return normalized.masked_fill_(~has_image.view(-1, 1, 1, 1), 0.0)
