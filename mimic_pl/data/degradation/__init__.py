"""Degradations of mentions at test time: low-quality or unrelated images, truncated or misspelt texts."""

from mimic_pl.data.degradation.base import Degradation, ImageDegradation, ShareDegradation
from mimic_pl.data.degradation.images import Blur, Downscaling, Jpeg, Noise, Occlusion
from mimic_pl.data.degradation.mentions import MissingSentence, NoImage, OtherImage, Truncation, Typos
from mimic_pl.data.degradation.pixels import DegradedPixels
from mimic_pl.data.degradation.redrawn import Redrawn

KINDS: tuple[type[Degradation], ...] = (
    *(Blur, Jpeg, Downscaling, Noise, Occlusion, Redrawn, OtherImage, NoImage),
    *(Truncation, Typos, MissingSentence),
)
"""All built-in degradations: of images, then of texts."""

__all__ = [
    "KINDS",
    "Blur",
    "Degradation",
    "DegradedPixels",
    "Downscaling",
    "ImageDegradation",
    "Jpeg",
    "MissingSentence",
    "NoImage",
    "Noise",
    "Occlusion",
    "OtherImage",
    "Redrawn",
    "ShareDegradation",
    "Truncation",
    "Typos",
]
