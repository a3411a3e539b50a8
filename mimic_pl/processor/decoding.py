"""Decodes images to square pixel tensors of the model's input size."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import MAX_PIXELS, opened_image
from mimic_pl.records import ImageSource


def decode(
    image: ImageSource, image_processor: ImageProcessor, max_pixels: int = MAX_PIXELS, reduced: bool = False
) -> Tensor:
    """Decode and resize an image.

    Args:
        image: The image.
        image_processor: Resizes it.
        max_pixels: Larger images count as oversized.
        reduced: Decode a JPEG at the smallest of its scales that is at least twice the model's input size, as Pillow's
            thumbnails do: faster for large images, but with slightly different pixels.

    Returns:
        uint8 ``[3, S, S]``.

    Raises:
        ImageError: The image fails.
    """
    with opened_for(image, image_processor, max_pixels, reduced) as opened:
        return image_processor.pixels(opened)


def opened_for(
    image: ImageSource, image_processor: ImageProcessor, max_pixels: int = MAX_PIXELS, reduced: bool = False
) -> AbstractContextManager[Image.Image]:
    """Decode an image like :func:`decode`, without resizing it.

    Raises:
        ImageError: The image fails.
    """
    return opened_image(image, max_pixels, 2 * image_processor.image_size if reduced else None)


def fingerprint(image_processor: ImageProcessor, reduced: bool) -> str:
    """Hash of the preprocessed pixels of a synthetic JPEG, as 16 hexadecimal digits.

    Preprocessings with identical pixels have the same fingerprint, regardless of their names and settings; a version of
    Pillow that decodes differently has another one.
    """
    side = 4 * image_processor.image_size  # large enough to be decoded at half scale
    across, down = np.meshgrid(np.arange(side + 37), np.arange(side + 11))
    pattern = np.stack([across * 7 % 256, (across * down) % 251, (across + 2 * down) // 3 % 256], axis=-1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pattern.jpg"
        Image.fromarray(pattern.astype(np.uint8)).save(path, quality=90)
        pixels = decode(path, image_processor, reduced=reduced)
    return hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).hexdigest()
