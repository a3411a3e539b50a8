"""Runs the two towers of a dual encoder of transformers, whose details differ between CLIP, SigLIP, ALIGN and FLAVA."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError


def text_outputs(model: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """The text tower's ``pooled`` embedding ``[batch, dim]`` and hidden states ``tokens`` ``[batch, tokens, width]``.

    Args:
        model: The model.
        input_ids: int64 ``[batch, tokens]``.
        attention_mask: int64 ``[batch, tokens]``; ``None`` if the tower was trained without one.
    """
    text = model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
    return {"pooled": _pooled(model, text), "tokens": text.last_hidden_state}


def image_outputs(model: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """The image tower's ``pooled`` embedding ``[batch, dim]`` and hidden states ``tokens`` ``[batch, tokens, width]``.

    Args:
        model: The model.
        pixel_values: Normalised square images, ``[batch, 3, S, S]``.
    """
    if takes_patches(model):
        patches = _patches(pixel_values, _vision_config(model).patch_size)
        grid = math.isqrt(patches.shape[1])
        image = model.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int64, device=patches.device),
            spatial_shapes=torch.full((len(patches), 2), grid, device=patches.device),
        )
    else:
        image = model.get_image_features(pixel_values=pixel_values)
    tokens = image.last_hidden_state
    if tokens.ndim == 4:  # the feature map of a convolutional network, [batch, width, rows, columns]
        tokens = tokens.flatten(2).transpose(1, 2)
    return {"pooled": _pooled(model, image), "tokens": tokens}


def image_size(model: Any) -> int | None:
    """Side of the model's square images, in pixels; ``None`` if the images may have any size.

    Raises:
        ConfigError: They are not square.
    """
    vision = _vision_config(model)
    if takes_patches(model):
        return int(math.isqrt(vision.num_patches) * vision.patch_size)
    if not hasattr(vision, "patch_size"):
        return None  # a convolutional network
    size = vision.image_size
    sides = {size} if isinstance(size, int) else set(size.values() if isinstance(size, dict) else size)
    if len(sides) > 1:
        raise ConfigError(
            f"The model takes images of {size} pixels, but mimic-pl provides squares. Choose another model."
        )
    return int(sides.pop())


def takes_patches(model: Any) -> bool:
    """Whether the model takes images of any shape as patches (NaFlex)."""
    return "spatial_shapes" in inspect.signature(model.get_image_features).parameters


def _vision_config(model: Any) -> Any:
    return getattr(model.config, "vision_config", None) or model.config.image_config


def _pooled(model: Any, outputs: Any) -> Tensor:
    pooled: Tensor | None = outputs.pooler_output
    if pooled is None:
        raise ConfigError(
            f"A {type(model).__name__} has no pooled text and image embeddings like CLIP's. Choose another model."
        )
    return pooled[:, 0] if pooled.ndim == 3 else pooled  # FLAVA projects all tokens, and compares the first ones


def _patches(pixel_values: Tensor, size: int) -> Tensor:
    """Cut images into patches ``[batch, patches, size * size * 3]``, as SigLIP 2's image processor does."""
    batch, channels, height, width = pixel_values.shape
    cut = pixel_values.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)
