"""Encoders with random weights, and random inputs for them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mimic_pl.encoders import CLIPEncoder, Encoder

EncoderSize = Literal["small", "published"]

_SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES: dict[EncoderSize, dict[str, Any]] = {
    "small": {"projection_dim": 512, "text_config": _SMALL, "vision_config": {**_SMALL, "patch_size": 32}},
    "published": {},  # the default of transformers is CLIP ViT-B/32
}

WORDS = (
    "river",
    "castle",
    "bridge",
    "harbour",
    "singer",
    "player",
    "city",
    "island",
    "season",
    "album",
    "north",
    "old",
)


def build_encoder(size: EncoderSize, seed: int) -> CLIPEncoder:
    """A CLIP encoder with random weights, for 224 x 224 pixels in patches of 32 and 40 text tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPEncoder(config=_SIZES[size], vocabulary=list(WORDS))


def random_inputs(encoder: Encoder, batch: int, generator: torch.Generator, device: str) -> dict[str, Tensor]:
    """Tokens of random texts, and noise images."""
    size = encoder.build_image_processor().image_size
    drawn = torch.randint(len(WORDS), (batch, 20), generator=generator).tolist()
    ids, mask = encoder.build_tokenizer()([" ".join(WORDS[word] for word in text) for text in drawn])
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    return {name: t.to(device) for name, t in (("input_ids", ids), ("attention_mask", mask), ("pixel_values", pixels))}
