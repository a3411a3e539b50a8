"""Loading of degraded images, without the cache."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mimic_pl.data.degradation.base import ImageDegradation
from mimic_pl.data.pixels import PixelSource
from mimic_pl.processor.decoding import opened_for
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageFolder


class DegradedPixels(PixelSource):
    """Loads the pixels of a folder's images, each degraded with the random generator of its mention.

    It does not use the image cache, which contains the original, resized images.

    Args:
        folder: The folder, with its image policy.
        image_processor: Resizes them.
        degradation: Applied to every image before resizing.
        reduced: Decode JPEGs at a reduced scale, like the original images.
    """

    def __init__(
        self,
        folder: ImageFolder,
        image_processor: ImageProcessor,
        degradation: ImageDegradation,
        reduced: bool = False,
    ) -> None:
        super().__init__(folder, image_processor, reduced)
        self.degradation = degradation

    def load(self, path: Path, index: int) -> Tensor:
        """The pixels of the degraded image."""
        with opened_for(path, self.image_processor, self.folder.max_pixels, self.reduced) as image:
            return self.image_processor.pixels(self.degradation.image(image, self.degradation.rng(index)))
