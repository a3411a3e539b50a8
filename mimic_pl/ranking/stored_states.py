"""Lazily decoded, moved and row-indexed states of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.ranking.quantization import SCALE, decode
from mimic_pl.units import State, States, flat, nested


class StoredState(Mapping[str, Tensor]):
    """A unit's stored state of some entities; each tensor is decoded on first access.

    Bounds need a fifth of an entity's values; its tokens are decoded only for the few pairs that need them.

    Args:
        columns: Stored columns by name, ``[entities, ...]``.
        device: Device of the decoded tensors.
    """

    def __init__(self, columns: Mapping[str, Tensor], device: torch.device) -> None:
        self._columns = columns
        self._device = device
        self._decoded: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The decoded tensor."""
        if name not in self._decoded:
            scale = self._columns.get(name + SCALE)
            # Moved before decoding: half or a quarter of the bytes.
            stored = self._columns[name].to(self._device, non_blocking=True)
            decoded = decode(stored, None if scale is None else scale.to(self._device))
            self._decoded[name] = decoded.contiguous()  # columns on disk are parts of rows
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the state's tensors."""
        return (name for name in self._columns if not name.endswith(SCALE))

    def __len__(self) -> int:
        """Number of the state's tensors."""
        return sum(1 for _ in self)


class PickedState(Mapping[str, Tensor]):
    """Some rows of a state; each tensor is copied on first access.

    Args:
        state: The state.
        rows: Row numbers, int64 ``[n]``; they may repeat.
        float64_on: Convert floating-point tensors to float64 on this device.
    """

    def __init__(self, state: State, rows: Tensor, float64_on: torch.device | None = None) -> None:
        self._state = state
        self._rows = rows
        self._float64_on = float64_on
        self._picked: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The rows of the tensor, ``[n, ...]``."""
        if name not in self._picked:
            picked = self._state[name].index_select(0, self._rows)
            if self._float64_on is not None:
                picked = picked.to(self._float64_on)
                picked = picked.double() if picked.is_floating_point() else picked
            self._picked[name] = picked
        return self._picked[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the state's tensors."""
        return iter(self._state)

    def __len__(self) -> int:
        """Number of the state's tensors."""
        return len(self._state)


def pick(states: States, rows: Tensor, float64_on: torch.device | None = None) -> States:
    """Some rows of each unit's state, as :class:`PickedState`."""
    return {unit: PickedState(state, rows, float64_on) for unit, state in states.items()}


def joined(parts: Sequence[States]) -> States:
    """Concatenate states along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    return {
        unit: {name: torch.cat([part[unit][name] for part in parts]) for name in state}
        for unit, state in parts[0].items()
    }


def gather_states(processes: ProcessGroup, states: States, extra: Tensor) -> list[tuple[States, Tensor]]:
    """Gather states and a tensor with as many rows from all processes, by rank; collective.

    Args:
        processes: The processes.
        states: States of this process, tensors ``[n, ...]``.
        extra: Tensor ``[n, ...]`` to gather with them.
    """
    if processes.world_size == 1:
        return [(states, extra)]
    local = flat(states)
    everyone = processes.gather([extra, *local.values()])
    return [(nested(dict(zip(local, tensors, strict=True))), tensor) for tensor, *tensors in everyone]
