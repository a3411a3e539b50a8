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
        size = self.image_processor.image_size
        pixels = torch.zeros(len(names), 3, size, size, dtype=torch.uint8)
        has_image = torch.zeros(len(names), dtype=torch.bool)
        failures: list[ImageFailure] = []
        for item, own in enumerate(() if self.blank else names):
            index = item if indices is None else indices[item]
            found, failed = self.folder.first(own, partial(self.load, index=index))
            failures += failed
            if found is not None:
                pixels[item], has_image[item] = found, True
        return PixelBatch(pixels, has_image, failures)

    def load(self, path: Path, index: int) -> Tensor:
        """The image's pixels, uint8 ``[3, S, S]``, from the cache or decoded.

        Args:
            path: The image.
            index: Position in the data set of the item that it belongs to, which a subclass may heed.

        Raises:
            ImageError: The image fails.
        """
        found = None if self.cache is None else self.cache.load(path, self.folder.max_pixels)
        if isinstance(found, Tensor):
            return found
        if found is not None and self.folder.policy != "error":  # where the message says in words what is wrong
            raise ImageError(path, found, "as it was when it was to be cached")
        return decode(path, self.image_processor, self.folder.max_pixels, self.reduced)
