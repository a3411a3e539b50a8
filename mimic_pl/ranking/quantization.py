"""The dtypes in which an index keeps the numbers of an entity: float32, bfloat16, or 8 bits with a scale per vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

IndexDtype = Literal["float32", "bfloat16", "int8"]
"""How an index keeps floating-point states.

- ``float32``: as they were computed;
- ``bfloat16``: half the bytes, 8 bits of mantissa;
- ``int8``: about a quarter; every vector (a token's query, a global feature) as 8-bit integers times its own scale.
  A unit that keeps only a few numbers of an entity (CMFU) keeps these in bfloat16: there is little to save, and its
  scores hang on each of them.

Whatever the dtype, ranks are exact for the numbers that it keeps.
"""

FEW = 128
"""Numbers of an entity; a unit that keeps no more of it keeps them in bfloat16 where others have 8 bits."""

SCALE = "#scale"
"""Ends the name of the column that holds the scales of another."""


def encode(name: str, tensor: Tensor, dtype: IndexDtype) -> dict[str, Tensor]:
    """Columns that keep a tensor ``[entities, ...]`` of a state in this dtype; integers stay as they are."""
    if not tensor.is_floating_point():
        return {name: tensor}
    if dtype != "int8":
        return {name: tensor.to(getattr(torch, dtype))}
    largest = tensor.float().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 2**8)
    # Rounded up, so that nothing is clipped: bfloat16 has 8 bits, and 2^-8 of the scale costs less than its other half.
    scale = (largest / 127 * (1 + 2**-8)).bfloat16()
    return {name: (tensor.float() / scale.float()).round().to(torch.int8), name + SCALE: scale}


def decode(stored: Tensor, scale: Tensor | None) -> Tensor:
    """The tensor that a column stands for: float32 if it was floating-point."""
    if scale is not None:
        return stored.float() * scale.float()
    return stored.float() if stored.is_floating_point() else stored
