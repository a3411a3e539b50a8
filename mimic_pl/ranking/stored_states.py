"""States of a block that are decoded, moved and picked apart only where somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.ranking.quantization import SCALE, decode
from mimic_pl.units import State, States, flat, nested


class StoredState(Mapping[str, Tensor]):
    """A unit's state of some entities as an index keeps it; a tensor is decoded when it is first asked for.

    Bounds look at a fifth of an entity's numbers; its tokens are decoded for the few pairs that need them.

    Args:
        columns: Stored columns by name, ``[entities, ...]``.
        device: Where decoded tensors are wanted.
    """

    def __init__(self, columns: Mapping[str, Tensor], device: torch.device) -> None:
        self._columns = columns
        self._device = device
        self._decoded: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The decoded tensor."""
        if name not in self._decoded:
            scale = self._columns.get(name + SCALE)
            # Moved before it is decoded: half or a quarter of the bytes.
            stored = self._columns[name].to(self._device, non_blocking=True)
            self._decoded[name] = decode(stored, None if scale is None else scale.to(self._device))
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the state's tensors."""
        return (name for name in self._columns if not name.endswith(SCALE))

    def __len__(self) -> int:
        """Number of the state's tensors."""
        return sum(1 for _ in self)


class PickedState(Mapping[str, Tensor]):
    """Some rows of a state, copied when a tensor is first asked for.

    Args:
        state: The state.
        rows: Which rows, int64 ``[n]``; they may repeat.
        double_on: Hand tensors out on this device, floating-point ones in float64.
    """

    def __init__(self, state: State, rows: Tensor, double_on: torch.device | None = None) -> None:
        self._state = state
        self._rows = rows
        self._double_on = double_on
        self._picked: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor's rows, ``[n, ...]``."""
        if name not in self._picked:
            picked = self._state[name].index_select(0, self._rows)
            if self._double_on is not None:
                picked = picked.to(self._double_on)
                picked = picked.double() if picked.is_floating_point() else picked
            self._picked[name] = picked
        return self._picked[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the state's tensors."""
        return iter(self._state)

    def __len__(self) -> int:
        """Number of the state's tensors."""
        return len(self._state)


def pick(states: States, rows: Tensor, double_on: torch.device | None = None) -> States:
    """Some rows of each unit's state, as :class:`PickedState`."""
    return {unit: PickedState(state, rows, double_on) for unit, state in states.items()}


def joined(parts: Sequence[States]) -> States:
    """States behind each other."""
    if len(parts) == 1:
        return parts[0]
    return {
        unit: {name: torch.cat([part[unit][name] for part in parts]) for name in state}
        for unit, state in parts[0].items()
    }


def of_every_process(processes: ProcessGroup, states: States, further: Tensor) -> list[tuple[States, Tensor]]:
    """States of every process, by rank, each with a tensor of as many rows; collective.

    Args:
        processes: The processes.
        states: Those of this one.
        further: A tensor of as many rows, ``[n, ...]``.
    """
    if processes.world_size == 1:
        return [(states, further)]
    own = flat(states)
    everyone = processes.gather([further, *own.values()])
    return [(nested(dict(zip(own, tensors, strict=True))), rest) for rest, *tensors in everyone]
