"""Draws the demo's images with Pillow: a badge as published by its club, and as photographed."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from math import cos, pi, sin
from random import Random
from typing import Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mimic_pl.data.demo_design import Badge

SIZE = 64
"""Side of an image in pixels."""
_CANVAS = 4 * SIZE
"""Side of the canvas on which a badge is drawn; downscaling smooths the edges."""

_COLOURS = {
    "red": (208, 36, 36),
    "yellow": (236, 190, 24),
    "green": (40, 146, 62),
    "blue": (38, 92, 204),
    "purple": (146, 58, 172),
    "black": (28, 28, 28),
}
_WHITE = (255, 255, 255)

Style = Literal["filled", "outlined", "hatched"]


def draw_entity_image(badge: Badge, variant: int) -> bytes:
    """Draw a badge as published by its club: flat, clean, upright, as PNG.

    Args:
        badge: The badge.
        variant: 0 fills the image, on white; 1 is smaller, on a pale background.
    """
    background, share = ((255, 255, 255), 0.9) if variant == 0 else ((226, 232, 236), 0.7)
    image = Image.new("RGB", (SIZE, SIZE), background)
    side = round(SIZE * share)
    stroke = _badge(badge, "filled").resize((side, side), Image.Resampling.LANCZOS)
    image.paste(stroke, ((SIZE - side) // 2, (SIZE - side) // 2), stroke)
    return _encoded(image, "PNG")


def draw_mention_image(badge: Badge, rng: Random) -> bytes:
    """Draw a badge as if photographed, as JPEG.

    It is filled, outlined or hatched; rotated, scaled and shifted; on a background gradient; with noise.
    """
    image = _background(rng)
    styles: tuple[Style, ...] = ("filled", "outlined", "hatched")
    stroke = _badge(badge, rng.choice(styles))
    stroke = stroke.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC)
    side = round(SIZE * rng.uniform(0.7, 1.0))
    stroke = stroke.resize((side, side), Image.Resampling.LANCZOS)
    room = SIZE - side
    image.paste(stroke, (rng.randint(0, room), rng.randint(0, room)), stroke)
    noise = Image.frombytes("RGB", (SIZE, SIZE), rng.randbytes(3 * SIZE * SIZE))
    image = Image.blend(image, noise, rng.uniform(0.04, 0.16))
    return _encoded(image, "JPEG", quality=rng.randint(60, 90))


def corrupted(content: bytes, rng: Random) -> bytes:
    """The start of an image, as after a broken download, or an error page saved in its place."""
    if rng.random() < 0.5:
        return content[: len(content) // 3]
    return b"<html><body>404 Not Found</body></html>\n"


@cache
def _badge(badge: Badge, style: Style) -> Image.Image:
    """A badge on a transparent canvas, RGBA, twice the size of an image; do not change it in place."""
    shape = Image.new("L", (_CANVAS, _CANVAS), 0)
    _draw_shape(ImageDraw.Draw(shape), badge.shape, 1.0)
    marking = Image.new("L", (_CANVAS, _CANVAS), 0)
    _draw_marking(ImageDraw.Draw(marking), badge.marking)

    colour = Image.new("RGBA", (_CANVAS, _CANVAS), (*_COLOURS[badge.colour], 255))
    canvas = Image.new("RGBA", (_CANVAS, _CANVAS), (*_COLOURS[badge.colour], 0))
    if style == "filled":
        canvas.paste(colour, mask=shape)
        canvas.paste((*_WHITE, 255), mask=marking)
        return canvas.reduce(2)
    inside = Image.new("L", (_CANVAS, _CANVAS), 0)
    _draw_shape(ImageDraw.Draw(inside), badge.shape, 0.74)
    canvas.paste(colour, mask=shape)
    canvas.paste((*_WHITE, 255), mask=inside)
    if style == "hatched":
        stripes = Image.new("L", (_CANVAS, _CANVAS), 0)
        pen = ImageDraw.Draw(stripes)
        for start in range(-_CANVAS, _CANVAS, 28):
            pen.line((start, 0, start + _CANVAS, _CANVAS), fill=255, width=11)
        # Leave space around the marking, so that it stands out from the stripes.
        stripes.paste(0, mask=marking.filter(ImageFilter.MaxFilter(25)))
        canvas.paste(colour, mask=ImageChops.darker(stripes, inside))
    canvas.paste(colour, mask=marking)
    return canvas.reduce(2)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, scale: float) -> None:
    """Fill a shape in the centre of the canvas; ``scale`` shrinks it."""
    centre = _CANVAS / 2
    radius = 0.42 * _CANVAS * scale

    def around(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(centre + radius * x, centre + radius * y) for x, y in points]

    if shape == "circle":
        pen.ellipse(around((-1, -1), (1, 1)), fill=255)
    elif shape == "square":
        pen.rectangle(around((-0.85, -0.85), (0.85, 0.85)), fill=255)
    elif shape == "triangle":
        pen.polygon(around((0, -1.05), (1.05, 0.85), (-1.05, 0.85)), fill=255)
    elif shape == "star":
        radii = (1.08, 0.52)
        corners = [(radii[k % 2] * sin(pi * k / 5), -radii[k % 2] * cos(pi * k / 5)) for k in range(10)]
        pen.polygon(around(*corners), fill=255)
    elif shape == "cross":
        pen.rectangle(around((-0.42, -1), (0.42, 1)), fill=255)
        pen.rectangle(around((-1, -0.42), (1, 0.42)), fill=255)
    elif shape == "drop":
        pen.ellipse(around((-0.72, -0.38), (0.72, 1.06)), fill=255)
        pen.polygon(around((0, -1.08), (0.68, 0.12), (-0.68, 0.12)), fill=255)
    else:
        raise ValueError(f"There is no shape {shape!r}.")


def _draw_marking(pen: ImageDraw.ImageDraw, marking: str) -> None:
    """Draw the marking in the centre of a shape."""
    centre, unit = _CANVAS / 2, _CANVAS / 16
    if marking == "dot":
        pen.ellipse((centre - 1.6 * unit, centre - 1.2 * unit, centre + 1.6 * unit, centre + 2 * unit), fill=255)
    elif marking == "bar":
        pen.rectangle((centre - 2.6 * unit, centre - 0.5 * unit, centre + 2.6 * unit, centre + 1.1 * unit), fill=255)
    elif marking == "pair":
        for side in (-1.7, 1.7):
            x = centre + side * unit
            pen.rectangle((x - 0.8 * unit, centre - 1.3 * unit, x + 0.8 * unit, centre + 2 * unit), fill=255)
    elif marking != "plain":
        raise ValueError(f"There is no marking {marking!r}.")


def _background(rng: Random) -> Image.Image:
    """A background with little colour and a brightness gradient."""
    light, dark = rng.randint(170, 250), rng.randint(110, 200)
    slope = Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(90 * rng.randrange(4))
    tints = [rng.randint(-14, 14) for _ in range(3)]
    bands = [slope.point([dark + tint + (light - dark) * value // 255 for value in range(256)]) for tint in tints]
    return Image.merge("RGB", bands)


def _encoded(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
