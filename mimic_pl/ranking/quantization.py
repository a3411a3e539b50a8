"""Storage dtypes of an index: float32, bfloat16, or 8 or 4 bits with scales."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

IndexDtype = Literal["float32", "bfloat16", "int8", "int4"]
"""How an index stores floating-point states.

- ``float32``: as computed;
- ``bfloat16``: half the bytes, 8 bits of precision;
- ``int8``: about a quarter; each vector (a token's query, a global feature) as 8-bit integers times its own scale.
  Units with small states (CMFU) use bfloat16 instead: there is little to save, and each value matters more;
- ``int4``: about a sixth; like ``int8``, but vectors of tokens (TGLU's queries), nearly all of an entity and averaged
  over in a score, as 4-bit integers with a scale for each 32 values.

Ranks are exact for the stored values, whatever the dtype.
"""

SMALL_STATE = 128
"""Maximum number of values in a unit's state of an entity for which ``int8`` and ``int4`` store
bfloat16 instead."""

SCALE = "#scale"
"""Suffix of the column with the scales of another column."""


_GROUP = 32
"""Values of a vector that share a scale in 4 bits."""


def encode(name: str, tensor: Tensor, dtype: IndexDtype) -> dict[str, Tensor]:
    """Convert a tensor ``[entities, ...]`` of a state to columns of this dtype; integers are stored unchanged."""
    if not tensor.is_floating_point():
        return {name: tensor}
    if dtype not in ("int8", "int4"):
        return {name: tensor.to(getattr(torch, dtype))}
    if dtype == "int4" and tensor.ndim > 2 and tensor.shape[-1] % _GROUP == 0:
        return _encode_int4(name, tensor.float())
    largest = tensor.float().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 2**8)
    # Rounded up, so that nothing is clipped: with bfloat16's 8 bits this costs 2^-8 of the scale, less than the two
    # extra bytes of a float32 scale.
    scale = (largest / 127 * (1 + 2**-8)).bfloat16()
    return {name: (tensor.float() / scale.float()).round().to(torch.int8), name + SCALE: scale}


def _encode_int4(name: str, tensor: Tensor) -> dict[str, Tensor]:
    groups = torch.unflatten(tensor, -1, (-1, _GROUP))
    largest = groups.abs().amax(dim=-1).clamp_min(torch.finfo(torch.float32).tiny * 2**8)
    scale = (largest / 7 * (1 + 2**-8)).bfloat16()
    values = (groups / scale.float().unsqueeze(-1)).round().add(8).to(torch.uint8).flatten(-2)
    return {name: values[..., ::2] | values[..., 1::2] << 4, name + SCALE: scale}


def decode(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Convert a stored column back to a tensor: float32 if it was floating-point."""
    if scale is not None and stored.dtype == torch.uint8:
        values = torch.stack((stored & 15, stored >> 4), dim=-1).view(*stored.shape[:-1], -1, _GROUP)
        return ((values.float() - 8) * scale.float().unsqueeze(-1)).flatten(-2)
    if scale is not None:
        return stored.float() * scale.float()
    return stored.float() if stored.is_floating_point() else stored
