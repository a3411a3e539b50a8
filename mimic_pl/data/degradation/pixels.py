"""Pixels of degraded images: decoded anew, and never kept."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mimic_pl.data.degradation.base import ImageDegradation
from mimic_pl.data.pixels import PixelSource
from mimic_pl.processor.decoding import open_for
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageFolder


class DegradedPixels(PixelSource):
    """Makes the pixels of a folder's images, each made worse as the mention that it stands beside says.

    It reads no cache and fills none: what lies there is resized already, and is what undisturbed mentions see.

    Args:
        folder: Where the images lie, and what happens where one fails.
        image_processor: Resizes them.
        degradation: Is given every image before it is resized.
        reduced: Decode JPEGs at a reduced scale, as the undisturbed ones are.
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
        """The pixels of the image, made worse."""
        image = open_for(path, self.image_processor, self.folder.max_pixels, self.reduced)
        return self.image_processor.pixels(self.degradation.image(image, self.degradation.rng(index)))
