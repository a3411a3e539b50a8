"""Grey values of 12, 16 or 32 bits, or floats, as 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1

_FULL_RANGE = ("PNG", "PPM", "JPEG2000")
"""Formats whose values Pillow scales to 16 bits if it opens them in the mode ``I`` of 32 bits."""


def to_8_bits(image: Image.Image, file_format: str | None, tags: Mapping[int, Any]) -> Image.Image:
    """Scale grey values to 8 bits.

    Unsigned values of up to 16 bits are scaled from their whole range, of which the 8 highest bits remain. Others (32
    bits, signed, floats) have no agreed range: the smallest becomes black and the largest white, as in viewers of such
    images.

    Args:
        image: An image of the mode ``I``, ``I;16``, ``I;16B``, ... or ``F``.
        file_format: Pillow's name of the format of its file, if any.
        tags: TIFF tags of its file, if any.

    Raises:
        ValueError: A value is not finite, all are equal, or outliers leave only black and white.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).clip(0, 255).astype(np.uint8)
    elif image.mode == "I" and file_format in _FULL_RANGE:
        grey = (values >> 8).clip(0, 255).astype(np.uint8)
    else:
        if image.mode == "I" and (tags.get(_BITS_PER_SAMPLE), tags.get(_SAMPLE_FORMAT, (1,))[0]) == ((32,), _UNSIGNED):
            values = values.view(np.uint32)
        grey = _stretched(values)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _stretched(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise ValueError("some of its values are not finite")
    if low == high:
        raise ValueError(f"all of its values are {low:g}, so there is no range to scale to black and white")
    grey = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # in rows: float64 of a whole large image would take much memory
        grey[row] = np.rint((line.astype(np.float64) - low) * (255 / (high - low)))
    if np.count_nonzero(np.bincount(grey.reshape(-1))) <= 2 and ((values != low) & (values != high)).any():
        raise ValueError(f"its values, from {low:g} to {high:g}, have outliers that leave only black and white")
    return grey
