"""Resizes images to the model's input size and normalises them as its vision tower expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimic_pl.errors import ConfigError
from mimic_pl.ranges import COUNT, POSITIVE, Range, in_range

Resize = Callable[[Image.Image], "np.ndarray[Any, np.dtype[np.uint8]]"]
"""Maps an RGB image to uint8 ``[3, S, S]``."""

_CPU_CHUNK = 8
"""Images normalised at once on a CPU: 5 MB at 224 x 224, which fits into the CPU cache."""


class ImageProcessor:
    """Resizes images to a square and normalises them.

    Args:
        image_size: Side S of the model's square input, in pixels.
        image_mean: Mean per colour channel of the checkpoint's training images, in [0, 1].
        image_std: Standard deviation per colour channel, in [0, 1].
        resize: Resizes (and crops) an image; by default directly to the square, as published.

    Raises:
        ConfigError: The statistics are not finite numbers, a deviation is not positive, or ``resize`` does not produce
            images of this size.
    """

    @in_range(image_size=COUNT, image_mean=Range(whole=False), image_std=POSITIVE)
    def __init__(
        self,
        image_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        resize: Resize | None = None,
    ) -> None:
        if resize is not None:
            resized = resize(Image.new("RGB", (2 * image_size, image_size + 1)))
            if resized.shape != (3, image_size, image_size) or resized.dtype != np.uint8:
                raise ConfigError(
                    f"image_resize is 'model', but the model's own preprocessing produces {resized.dtype} "
                    f"{list(resized.shape)} instead of uint8 [3, {image_size}, {image_size}]. Set image_resize to "
                    "'square'."
                )
        self.resize = resize
        self.image_size = image_size
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize an RGB image with ``resize``; by default directly to the square, with Lanczos, as published.

        Returns:
            uint8 ``[3, S, S]``.
        """
        if self.resize is not None:
            return torch.from_numpy(np.ascontiguousarray(self.resize(image)))
        square = image.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: Tensor, has_image: Tensor) -> Tensor:
        """Normalise pixels with the checkpoint's mean and standard deviation, on their device.

        Args:
            pixels: uint8 ``[batch, 3, S, S]``.
            has_image: bool ``[batch]``; where false, the result is zeros *after* normalisation, as published.

        Returns:
            float32 ``[batch, 3, S, S]``.
        """
        mean = torch.tensor(self.image_mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.image_std, device=pixels.device).view(1, 3, 1, 1)
        normalized = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        # In place and in chunks: on a CPU, temporaries of the batch's size cost far more than the arithmetic.
        at_once = _CPU_CHUNK if pixels.device.type == "cpu" else max(1, len(pixels))
        for start in range(0, len(pixels), at_once):
            part = normalized[start : start + at_once].copy_(pixels[start : start + at_once])
            part.div_(255).sub_(mean).div_(std)
        return normalized.masked_fill_(~has_image.view(-1, 1, 1, 1), 0.0)
