"""Redrawing: the same motif in another drawing style."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from mimic_pl.data.degradation.base import ImageDegradation

_COLORS = 8
"""Colors of a drawing in flat color."""


class Redrawn(ImageDegradation):
    """The motif as another artist might have drawn it: color, outline, turn, size and style change together.

    At strength 1 the hue moves by up to 20 degrees in either direction and the saturation by up to 40 %, edges get a
    dark outline, areas become flat, and the motif is turned by up to 15 degrees and drawn at 65 % to 90 % of its size,
    up to 15 % wider or narrower, somewhere in the frame. All of it grows with the strength; hues stay close to what
    they were, because color may be what tells two entities apart. Space around the motif gets the most frequent color
    of the image's border.

    For a model trained on drawings of one style, the difference to the unchanged images tells how much of what it knows
    is the style.
    """

    kind = "redrawn"
    largest = 2.0
    grades = (0.25, 0.5, 1.0)

    def image(self, image: Image.Image, rng: Random) -> Image.Image:
        """The redrawn image, of the same size."""
        # Drawn even at strength 0, so that every strength changes the image in the same direction.
        hue, saturation, angle, shrinking, stretching = (rng.choice((-1, 1)) * rng.uniform(0.5, 1) for _ in range(5))
        place = rng.random(), rng.random()
        if self.strength == 0:
            return image
        drawn = self._outlined(self._flat(image))
        drawn = self._recolored(drawn, hue, saturation)
        background = _border_color(drawn)
        drawn = drawn.rotate(15 * self.strength * angle, Image.Resampling.BICUBIC, fillcolor=background)
        return self._resized(drawn, 0.225 + 0.125 * shrinking, 0.15 * stretching, place, background)

    def _flat(self, image: Image.Image) -> Image.Image:
        flat = image.quantize(_COLORS, dither=Image.Dither.NONE).convert("RGB")
        return Image.blend(image, flat, min(self.strength, 1))

    def _outlined(self, image: Image.Image) -> Image.Image:
        grey = ImageOps.grayscale(image)
        radius = 0.015 * min(image.size)
        edges = ImageChops.difference(grey, grey.filter(ImageFilter.GaussianBlur(radius)))
        strongest = max(level for level, count in enumerate(edges.histogram()) if count or not level) or 1
        outline = edges.point([min(255, round(level * 160 * self.strength / strongest)) for level in range(256)])
        return ImageChops.subtract(image, Image.merge("RGB", (outline, outline, outline)))

    def _recolored(self, image: Image.Image, hue: float, saturation: float) -> Image.Image:
        bands = list(image.convert("HSV").split())
        offset = round(20 / 360 * 256 * self.strength * hue)
        bands[0] = bands[0].point([(level + offset) % 256 for level in range(256)])
        recolored = Image.merge("HSV", bands).convert("RGB")
        return ImageEnhance.Color(recolored).enhance(max(0.0, 1 + 0.4 * self.strength * saturation))

    def _resized(
        self,
        image: Image.Image,
        shrinking: float,
        stretching: float,
        place: tuple[float, float],
        background: tuple[int, int, int],
    ) -> Image.Image:
        width, height = image.size
        scale = 1 - shrinking * self.strength
        stretched = 1 + stretching * self.strength
        size = max(1, round(width * min(1, scale * stretched))), max(1, round(height * min(1, scale / stretched)))
        frame = Image.new("RGB", image.size, background)
        corner = round(place[0] * (width - size[0])), round(place[1] * (height - size[1]))
        frame.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
        return frame


def _border_color(image: Image.Image) -> tuple[int, int, int]:
    """The most frequent color of the outermost pixels."""
    width, height = image.size
    counts: dict[tuple[int, int, int], int] = {}
    for box in ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)):
        for count, color in image.crop(box).getcolors(max(width, height)) or []:
            counts[color] = counts.get(color, 0) + count  # type: ignore[index, arg-type]  # RGB
    return max(counts, key=lambda color: (counts[color], color))
