"""Mentions made worse at test time: pictures of low quality or beside the point, texts cut off or misspelt."""

from mimic_pl.data.degradation.base import Degradation, PictureDegradation, ShareDegradation
from mimic_pl.data.degradation.mentions import MissingSentence, NoPicture, OtherPicture, Truncation, Typos
from mimic_pl.data.degradation.pictures import Blur, Downscaling, Jpeg, Noise, Occlusion
from mimic_pl.data.degradation.pixels import DegradedPixels

KINDS: tuple[type[Degradation], ...] = (
    *(Blur, Jpeg, Downscaling, Noise, Occlusion, OtherPicture, NoPicture),
    *(Truncation, Typos, MissingSentence),
)
"""All that this package has: of pictures, then of texts."""

__all__ = [
    "KINDS",
    "Blur",
    "Degradation",
    "DegradedPixels",
    "Downscaling",
    "Jpeg",
    "MissingSentence",
    "NoPicture",
    "Noise",
    "Occlusion",
    "OtherPicture",
    "PictureDegradation",
    "ShareDegradation",
    "Truncation",
    "Typos",
]
