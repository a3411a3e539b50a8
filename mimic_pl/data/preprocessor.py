"""What the data module needs of an encoder's preprocessing."""

from __future__ import annotations

from typing import Protocol

from PIL import Image
from torch import Tensor


class Preprocessor(Protocol):
    """Turns texts and images into model inputs; the encoder owns the real one.

    Attributes:
        image_size: Side S of the model's square input, in pixels.
    """

    image_size: int

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 ``[batch, text_tokens]``, padded on the right."""

    def pixels(self, image: Image.Image) -> Tensor:
        """RGB image -> uint8 ``[3, S, S]``."""

    def normalize(self, pixels: Tensor, has_image: Tensor) -> Tensor:
        """uint8 ``[batch, 3, S, S]`` and bool ``[batch]`` -> float32 ``[batch, 3, S, S]``."""
