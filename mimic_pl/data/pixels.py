"""Names of images -> a batch of pixels, decoded now or taken from the cache: the same to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.batch import ImageFailure
from mimic_pl.data.image_cache import ImageCache
from mimic_pl.processor.decoding import decode
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageError, ImageFolder


class PixelBatch(NamedTuple):
    """Pixels of some items.

    Attributes:
        pixels: uint8 ``[batch, 3, S, S]``, zeros where there is no image.
        has_image: bool ``[batch]``.
        failures: Images that failed on the way.
    """

    pixels: Tensor
    has_image: Tensor
    failures: list[ImageFailure]


class PixelSource:
    """Makes the pixels of a folder's images.

    Args:
        folder: Where the images lie, and what happens where one fails.
        image_processor: Resizes them.
        reduced: Decode JPEGs at a reduced scale (see :func:`~mimic_pl.processor.decoding.decode`).
        cache: Where pixels may lie already.
        blank: Make nothing of any image, for a model that is to see texts only.
    """

    def __init__(
        self,
        folder: ImageFolder,
        image_processor: ImageProcessor,
        reduced: bool = False,
        cache: ImageCache | None = None,
        blank: bool = False,
    ) -> None:
        self.folder = folder
        self.image_processor = image_processor
        self.reduced = reduced
        self.cache = cache
        self.blank = blank

    def batch(self, names: Sequence[Sequence[str]], indices: Sequence[int] | None = None) -> PixelBatch:
        """For every item the pixels of the first of its images that opens.

        Args:
            names: The images of each item.
            indices: Places of the items in their data set, for :meth:`load`; by default those in the batch.

        Raises:
            DataError: An image failed and the folder's policy is ``error``.
        """
        rows = torch.full((len(names),), -1)
        decoded: dict[int, Tensor] = {}
        failures: list[ImageFailure] = []
        for item, own in enumerate(() if self.blank else names):
            index = item if indices is None else indices[item]
            found, failed = self.folder.first(own, partial(self.load, index=index))
            failures += failed
            if isinstance(found, Tensor):
                decoded[item] = found
            elif found is not None:
                rows[item] = found
        has_image = rows >= 0
        size = self.image_processor.image_size
        if self.cache is not None and has_image.any():
            pixels = self.cache.pixels(rows.clamp_min(0))
            for item in (~has_image).nonzero().flatten().tolist():
                pixels[item].zero_()
        else:
            pixels = torch.zeros(len(names), 3, size, size, dtype=torch.uint8)
        for item, one in decoded.items():
            pixels[item] = one
            has_image[item] = True
        return PixelBatch(pixels, has_image, failures)

    def load(self, path: Path, index: int) -> int | Tensor:
        """The image's row in the cache, or where it is not there its pixels.

        Args:
            path: The image.
            index: Place in the data set of the item that it stands beside, which a subclass may heed.

        Raises:
            ImageError: The image fails.
        """
        found = None if self.cache is None else self.cache.find(path, self.folder.max_pixels)
        if isinstance(found, int):
            return found
        if found is not None and self.folder.policy != "error":  # which tells in words what is wrong
            raise ImageError(path, found, "as it was when it was to be cached")
        return decode(path, self.image_processor, self.folder.max_pixels, self.reduced)
