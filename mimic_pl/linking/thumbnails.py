"""Thumbnails of images and of attention over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mimic_pl.processor.images import ImageError, open_image

SIDE = 128
"""Longer side of a thumbnail, in pixels."""

_HEAT = (230, 60, 0)


def first_thumbnail(images: Sequence[Any], side: int = SIDE) -> Image.Image | None:
    """The first of an entity's images that opens, with sides of at most ``side`` pixels; None if there is none."""
    for source in images:
        try:
            image = open_image(source, reduced_to=side).convert("RGB")
        except ImageError:
            continue
        image.thumbnail((side, side))
        return image
    return None


def data_uri(image: Image.Image, side: int = SIDE) -> str:
    """Encode an image as a ``data:`` URI of a JPEG whose sides are at most ``side`` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def png_uri(content: bytes) -> str:
    """A ``data:`` URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def heat_map(image: Image.Image, grid: Tensor, side: int = SIDE) -> Image.Image:
    """Overlay patch weights in red on a grey image, normalised to the largest weight.

    Args:
        image: The original image. The model gets it resized to a square, so the patches are stretched accordingly.
        grid: Weights, ``[rows, rows]``, not negative.
        side: Longer side of the result in pixels.
    """
    small = image.convert("L").convert("RGB")
    small.thumbnail((side, side))
    strength = grid / grid.max().clamp_min(torch.finfo(grid.dtype).tiny)
    mask = Image.fromarray((strength * 0.75 * 255).round().to(torch.uint8).numpy())
    return Image.composite(
        Image.new("RGB", small.size, _HEAT), small, mask.resize(small.size, Image.Resampling.NEAREST)
    )
