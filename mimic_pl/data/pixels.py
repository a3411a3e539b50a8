"""Image names -> a batch of pixels, decoded or read from the cache, with bit-identical results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
from torch import Tensor

from mimic_pl.batch import ImageFailure
from mimic_pl.data.file_keys import digests
from mimic_pl.data.image_cache import ImageCache
from mimic_pl.processor.decoding import decode, fingerprint
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageError, ImageFolder


class PixelBatch(NamedTuple):
    """Pixels of a batch of items.

    Attributes:
        pixels: uint8 ``[batch, 3, S, S]``, zeros where there is no image.
        has_image: bool ``[batch]``.
        failures: Images that failed.
    """

    pixels: Tensor
    has_image: Tensor
    failures: list[ImageFailure]


class PixelSource:
    """Loads the pixels of a folder's images.

    Args:
        folder: The folder, with its image policy.
        image_processor: Resizes them.
        reduced: Decode JPEGs at a reduced scale (see :func:`~mimic_pl.processor.decoding.decode`).
        cache: Cache of decoded images.
        blank: Ignore all images, for a text-only model.
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
        """For every item the pixels of its first image that opens.

        Args:
            names: The images of each item.
            indices: Indices of the items in their data set, for :meth:`load`; by default those in the batch.

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
            index: Index of its item in the data set, for subclasses.

        Raises:
            ImageError: The image fails.
        """
        found = None if self.cache is None else self.cache.load(path, self.folder.max_pixels)
        if isinstance(found, Tensor):
            return found
        if found is not None and self.folder.policy != "error":  # "error" decodes again for a detailed message
            raise ImageError(path, found, "it already failed when the cache was filled")
        return decode(path, self.image_processor, self.folder.max_pixels, self.reduced)

    def digests(self, names: Iterable[str]) -> Iterable[bytes | None]:
        """Hash of the content of each image's file; ``None`` if it cannot be read, nothing if images are ignored."""
        paths = [] if self.blank else [self.folder.path(name) for name in names]
        return digests(paths) if self.cache is None else self.cache.digests(paths, self.folder.max_pixels)

    def preprocessing(self) -> str:
        """Everything that decides, besides the files, on the pixels and on which images open."""
        if self.blank:
            return "none"
        pixels = fingerprint(self.image_processor, self.reduced)
        return f"{pixels}, Pillow {PIL.__version__}, up to {self.folder.max_pixels} pixels"
