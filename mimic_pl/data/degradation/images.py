"""Degradations of image quality: blur, compression, downscaling, noise and occlusion.

Lengths are relative to the image's shorter side, so that a strength means the same for an image of 72 pixels and one of
1,500, since both are resized to the model's square. Only JPEG works on blocks of 8 x 8 pixels and affects small images
more.
"""

from __future__ import annotations

from io import BytesIO
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from mimic_pl.data.degradation.base import ImageDegradation

_GREY = (128, 128, 128)
_LARGEST_JPEG = 65_500
"""Maximum side of a JPEG in pixels."""


class Blur(ImageDegradation):
    """Gaussian blur; the strength is its standard deviation in percent of the image's shorter side.

    Example:
        >>> Blur(4).image(Image.new("RGB", (100, 50)), Random())  # a radius of 2 pixels  # doctest: +SKIP
    """

    kind = "blur"
    largest = 100.0
    grades = (1.0, 2.0, 4.0, 8.0)

    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The blurred image."""
        return image.filter(ImageFilter.GaussianBlur(self.strength / 100 * min(image.size)))


class Jpeg(ImageDegradation):
    """JPEG compression; the strength is 100 minus Pillow's quality. At 0, the image is not compressed."""

    kind = "jpeg"
    largest = 99.0
    grades = (50.0, 80.0, 90.0, 95.0)

    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The image, compressed and decoded."""
        if self.strength == 0:
            return image
        if max(image.size) > _LARGEST_JPEG:
            image = ImageOps.contain(image, (_LARGEST_JPEG, _LARGEST_JPEG))
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=round(100 - self.strength))
        return Image.open(buffer).convert("RGB")


class Downscaling(ImageDegradation):
    """Downscaling; the strength is the size of a resulting pixel in percent of the image's shorter side.

    At strength 4, the resulting shorter side has 25 pixels, regardless of the original size. Smaller images are
    unchanged.
    """

    kind = "downscaling"
    largest = 100.0
    grades = (2.0, 4.0, 8.0, 16.0)

    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The smaller image."""
        pixel = self.strength / 100 * min(image.size)
        if pixel <= 1:
            return image
        width, height = (max(1, round(side / pixel)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)


class Noise(ImageDegradation):
    """Gaussian noise; the strength is its standard deviation in percent of the range from black to white.

    Its grains are squares, 64 along the shorter side (single pixels in a smaller image): noise of single pixels would
    vanish when a large image is resized.
    """

    kind = "noise"
    largest = 100.0
    grades = (5.0, 10.0, 20.0, 40.0)
    grains = 64

    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The noisy image."""
        grain = max(1.0, min(image.size) / self.grains)
        columns, rows = (max(1, round(side / grain)) for side in image.size)
        normal = np.random.default_rng(rng.getrandbits(64)).standard_normal((rows, columns, 3), np.float32)
        noise = np.rint(2.55 * self.strength * normal)
        # Added and subtracted as bytes, so that a large image needs no float array.
        brighter, darker = (
            Image.fromarray(part.clip(0, 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
            for part in (noise, -noise)
        )
        return ImageChops.subtract(ImageChops.add(image, brighter), darker)


class Occlusion(ImageDegradation):
    """A grey rectangle with the image's aspect ratio at a random position; the strength is its fraction of the area."""

    kind = "occlusion"
    grades = (0.1, 0.25, 0.5, 0.75)

    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The occluded image."""
        box = []
        for side in image.size:
            length = round(self.strength**0.5 * side)
            start = round(rng.random() * (side - length))
            box.append((start, start + length))
        (left, right), (top, bottom) = box
        image = image.copy()
        image.paste(_GREY, (left, top, right, bottom))
        return image
