"""Mentions made worse at test time: images of low quality or beside the point, texts cut off or misspelt."""

from mimic_pl.data.degradation.base import Degradation, ImageDegradation, ShareDegradation
from mimic_pl.data.degradation.images import Blur, Downscaling, Jpeg, Noise, Occlusion
from mimic_pl.data.degradation.mentions import MissingSentence, NoImage, OtherImage, Truncation, Typos
from mimic_pl.data.degradation.pixels import DegradedPixels

KINDS: tuple[type[Degradation], ...] = (
    *(Blur, Jpeg, Downscaling, Noise, Occlusion, OtherImage, NoImage),
    *(Truncation, Typos, MissingSentence),
)
"""All that this package has: of images, then of texts."""

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
    "ShareDegradation",
    "Truncation",
    "Typos",
]
