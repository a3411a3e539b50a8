"""Conversion of entity states to the columns of an index: values, scales, state hashes, finiteness."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic_pl.ranking.quantization import SMALL_STATE, IndexDtype, encode
from mimic_pl.units import States

STATE_HASH = "#state_hash"
"""Suffix of a unit's column of state hashes: entities with equal states have equal hashes."""

FINITE = "#finite"
"""Column that says whether all values of an entity are finite."""


def to_columns(states: States, dtype: IndexDtype) -> dict[str, Tensor]:
    """Convert states to the columns of an index, ``[entities, ...]``: values, hashes and finiteness."""
    columns: dict[str, Tensor] = {}
    finite: Tensor | None = None
    for unit, state in states.items():
        state_hash: Tensor | None = None
        small = sum(tensor[:1].numel() for tensor in state.values()) <= SMALL_STATE
        unit_dtype: IndexDtype = "bfloat16" if dtype in ("int8", "int4") and small else dtype
        for name, tensor in state.items():
            good = torch.isfinite(tensor).flatten(1).all(dim=1) if tensor.is_floating_point() else None
            finite = good if finite is None else finite if good is None else finite & good
            for column, stored in encode(name, tensor, unit_dtype).items():
                columns[f"{unit}/{column}"] = stored
                number = _hash_rows(stored, len(columns))
                state_hash = number if state_hash is None else state_hash + number
        assert state_hash is not None, f"the unit {unit!r} has no entity state"
        columns[f"{unit}/{STATE_HASH}"] = state_hash
    length = len(next(iter(columns.values())))
    columns[FINITE] = torch.ones(length, dtype=torch.uint8) if finite is None else finite.to(torch.uint8)
    return columns


def _hash_rows(stored: Tensor, seed: int) -> Tensor:
    """Hash each row, int64 ``[rows]``: equal rows have equal hashes; others collide with probability about 2^-60."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.element_size()]
    bits = stored.reshape(len(stored), -1).contiguous().view(words).long()
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * weights.to(bits.device)).sum(dim=1)  # modulo 2^64
