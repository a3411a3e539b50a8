"""States of entities as the columns that an index stores: numbers, scales, a hash of each state, finiteness."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic_pl.ranking.quantization import FEW, IndexDtype, encode
from mimic_pl.units import States

STATE_HASH = "#state_hash"
"""Ends the name of a unit's column of state hashes: entities with the same state have the same number."""

FINITE = "#finite"
"""The column that says whether all numbers of an entity are finite."""


def to_columns(states: States, dtype: IndexDtype) -> dict[str, Tensor]:
    """The columns in which an index stores these states, ``[entities, ...]``: values, hashes, and finiteness."""
    columns: dict[str, Tensor] = {}
    finite: Tensor | None = None
    for unit, state in states.items():
        state_hash: Tensor | None = None
        few = sum(tensor[:1].numel() for tensor in state.values()) <= FEW
        unit_dtype: IndexDtype = "bfloat16" if dtype == "int8" and few else dtype
        for name, tensor in state.items():
            good = torch.isfinite(tensor).flatten(1).all(dim=1) if tensor.is_floating_point() else None
            finite = good if finite is None else finite if good is None else finite & good
            for column, stored in encode(name, tensor, unit_dtype).items():
                columns[f"{unit}/{column}"] = stored
                number = _hash_rows(stored, len(columns))
                state_hash = number if state_hash is None else state_hash + number
        assert state_hash is not None, f"the unit {unit!r} keeps nothing of an entity"
        columns[f"{unit}/{STATE_HASH}"] = state_hash
    length = len(next(iter(columns.values())))
    columns[FINITE] = torch.ones(length, dtype=torch.uint8) if finite is None else finite.to(torch.uint8)
    return columns


def _hash_rows(stored: Tensor, seed: int) -> Tensor:
    """A number per row, int64 ``[rows]``: equal rows have equal ones, others but by a chance of about 2^-60."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.element_size()]
    bits = stored.reshape(len(stored), -1).contiguous().view(words).long()
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * weights.to(bits.device)).sum(dim=1)  # modulo 2^64
