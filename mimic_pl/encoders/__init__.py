"""Encoders: from tokens and images to :class:`~mimic_pl.features.Features`."""

from mimic_pl.encoders.base import INPUTS, Encoder, repeat_last
from mimic_pl.encoders.clip import CLIPEncoder
from mimic_pl.encoders.frozen import content_keys
from mimic_pl.encoders.text_vision import TextVisionEncoder

__all__ = ["INPUTS", "CLIPEncoder", "Encoder", "TextVisionEncoder", "content_keys", "repeat_last"]
