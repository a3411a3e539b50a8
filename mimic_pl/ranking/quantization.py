"""Storage dtypes of an index: float32, bfloat16, or int8 with a scale per vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

IndexDtype = Literal["float32", "bfloat16", "int8"]
"""How an index stores floating-point states.

- ``float32``: as computed;
- ``bfloat16``: half the bytes, 8 bits of precision;
- ``int8``: about a quarter; each vector (a token's query, a global feature) as 8-bit integers times its own scale.
  Units with small states (CMFU) use bfloat16 instead: there is little to save, and each value matters more.

Ranks are exact for the stored values, whatever the dtype.
"""

SMALL_STATE = 128
"""Maximum number of values in a unit's state of an entity for which ``int8`` stores bfloat16 instead."""

SCALE = "#scale"
"""Suffix of the column with the scales of another column."""


def encode(name: str, tensor: Tensor, dtype: IndexDtype) -> dict[str, Tensor]:
    """Convert a tensor ``[entities, ...]`` of a state to columns of this dtype; integers are stored unchanged."""
    if not tensor.is_floating_point():
        return {name: tensor}
    if dtype != "int8":
        return {name: tensor.to(getattr(torch, dtype))}
    largest = tensor.float().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 2**8)
    # Rounded up, so that nothing is clipped: with bfloat16's 8 bits this costs 2^-8 of the scale, less than the two
    # extra bytes of a float32 scale.
    scale = (largest / 127 * (1 + 2**-8)).bfloat16()
    return {name: (tensor.float() / scale.float()).round().to(torch.int8), name + SCALE: scale}


def decode(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Convert a stored column back to a tensor: float32 if it was floating-point."""
    if scale is not None:
        return stored.float() * scale.float()
    return stored.float() if stored.is_floating_point() else stored
