"""The entity index: what the units keep of every entity, in knowledge-base order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.ranking.quantization import FEW, IndexDtype, encode
from mimic_pl.ranking.states import StoredState
from mimic_pl.units import States, flat, nested

STATE_HASH = "#state_hash"
"""Ends the name of a unit's column of state hashes: entities with the same state have the same number."""

FINITE = "#finite"
"""The column that says whether all numbers of an entity are finite."""


class Block(NamedTuple):
    """Entities that stand beside each other in the knowledge base, or that were picked from it.

    Attributes:
        states: Their states, decoded where they are looked at.
        state_hashes: For each unit a hash of each entity's state, int64 ``[entities]``; equal states have equal hashes.
        finite: Whether all numbers of an entity's states are finite, bool ``[entities]``.
    """

    states: States
    state_hashes: dict[str, Tensor]
    finite: Tensor


class Shard(NamedTuple):
    """Which entities of a knowledge base a process holds.

    Attributes:
        positions: Theirs in the knowledge base, ascending, int64 ``[held]``.
        total: Entities in the knowledge base.
        processes: The processes that hold all of it together, each entity once.
    """

    positions: Tensor
    total: int
    processes: ProcessGroup

    @staticmethod
    def whole(total: int) -> Shard:
        """All entities."""
        return Shard(torch.arange(total), total, ProcessGroup(alone=True))


class EntityIndex(ABC):
    """States of all entities of a knowledge base, read in blocks: in memory or on disk.

    Several processes hold a shard each. Positions are always those in the whole knowledge base.

    Args:
        shard: What this process holds.
        device: Where blocks are handed out.
    """

    def __init__(self, shard: Shard, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.processes = shard.processes
        self.positions = shard.positions.to(self.device)
        """Of the entities that this process holds, ascending, int64 ``[held]``."""

    @abstractmethod
    def __len__(self) -> int:
        """Entities in the knowledge base."""

    @property
    @abstractmethod
    def bytes_per_entity(self) -> int:
        """Bytes that one entity takes, state hashes included."""

    @abstractmethod
    def _columns(self, start: int, stop: int) -> Mapping[str, Tensor]:
        """Columns of the entities that this process holds, from the ``start``-th up to before the ``stop``-th."""

    @abstractmethod
    def _rows(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Columns of some of the entities that this process holds."""

    def holds(self, positions: Tensor) -> Tensor:
        """Which entities this process holds, bool of the same shape."""
        return torch.isin(positions, self.positions)

    def select(self, positions: Tensor) -> Block:
        """Entities that this process holds, at these positions, int64 ``[n]``."""
        return self._block(self._rows(torch.searchsorted(self.positions, positions)))

    def gather(self, positions: Tensor) -> States:
        """States of the entities at these positions, whoever holds them; collective.

        Args:
            positions: int64 ``[n]``, the same on all processes, none twice.
        """
        if self.processes.world_size == 1:
            return self.select(positions).states
        held = positions[self.holds(positions)]
        own = flat(self.select(held).states) if len(held) else {}
        # A process that holds none of them knows nothing of their shapes.
        like = next(filter(None, self.processes.objects({key: (t.dtype, t.shape[1:]) for key, t in own.items()})))
        sent = [own[key] if own else torch.empty((0, *shape), dtype=dtype) for key, (dtype, shape) in like.items()]
        parts = self.processes.gather([held, *(tensor.to(self.device) for tensor in sent)])
        found, *tensors = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        order = found.argsort()[positions.argsort().argsort()]
        return nested({key: tensor[order] for key, tensor in zip(like, tensors, strict=True)})

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Block]]:
        """Go through what this process holds, in the order of the knowledge base.

        Yields:
            The positions of the entities of a block, int64 ``[n]``, and the block of at most ``size`` entities.
        """
        for start in range(0, len(self.positions), size):
            positions = self.positions[start : start + size]
            yield positions, self._block(self._columns(start, start + len(positions)))

    def _block(self, columns: Mapping[str, Tensor]) -> Block:
        units: dict[str, dict[str, Tensor]] = {}
        state_hashes: dict[str, Tensor] = {}
        for column, tensor in columns.items():
            unit, _, name = column.partition("/")
            if name == STATE_HASH:
                state_hashes[unit] = tensor.to(self.device)
            elif column != FINITE:
                units.setdefault(unit, {})[name] = tensor
        states = {unit: StoredState(state, self.device) for unit, state in units.items()}
        return Block(states, state_hashes, columns[FINITE].bool())


class MemoryIndex(EntityIndex):
    """An index in the memory of a device or of the host.

    Memory is set aside once, when the first batch tells what an entity's states look like: encoding never holds the
    states twice.

    Args:
        num_entities: Entities in the knowledge base.
        device: Where blocks are handed out.
        dtype: How floating-point states are kept.
        on_host: Keep the states in host memory, whatever the device.
        shard: What this process holds of them; all by default.

    Example:
        >>> index = MemoryIndex(len(entities), dtype="bfloat16")  # doctest: +SKIP
        >>> index.append(model.matcher.entity(features))  # doctest: +SKIP
    """

    def __init__(
        self,
        num_entities: int,
        device: torch.device | str = "cpu",
        dtype: IndexDtype = "float32",
        on_host: bool = False,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(shard or Shard.whole(num_entities), device)
        self.num_entities = num_entities
        self.dtype: IndexDtype = dtype
        self._place = torch.device("cpu") if on_host else self.device
        self._stored: dict[str, Tensor] = {}
        self._filled = 0

    def append(self, states: States) -> None:
        """Add the states of the next entities in knowledge-base order: tensors ``[batch, ...]``.

        Raises:
            ValueError: More entities come than were announced.
        """
        columns = to_columns(states, self.dtype)
        self.put(self.positions[self._filled : self._filled + len(columns[FINITE])], columns)

    def put(self, positions: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Write columns, as :func:`to_columns` makes them, at positions that nothing was written at yet.

        Raises:
            ValueError: More entities come than were announced.
        """
        size = len(columns[FINITE])
        if self._filled + size > len(self.positions):
            raise ValueError(
                f"the index was made for {len(self.positions)} entities and got {self._filled + size}: "
                "the loader of entities yields each of them once"
            )
        if not self._stored:
            # Pinned, so that copies to the device overlap with its work.
            pinned = self._place != self.device and self.device.type == "cuda"
            self._stored = {
                name: torch.empty(
                    (len(self.positions), *tensor.shape[1:]), dtype=tensor.dtype, device=self._place, pin_memory=pinned
                )
                for name, tensor in columns.items()
            }
        rows = torch.searchsorted(self.positions, positions.to(self.device)).to(self._place)
        for name, tensor in columns.items():
            self._stored[name][rows] = tensor.to(self._place)
        self._filled += size

    def __len__(self) -> int:
        """Entities in the knowledge base; before all are filled in, those that are, and those of other processes."""
        return self.num_entities - len(self.positions) + self._filled

    @property
    def missing(self) -> int:
        """Entities of this process that are not filled in."""
        return len(self.positions) - self._filled

    @property
    def bytes_per_entity(self) -> int:
        """Memory that one entity takes, state hashes included."""
        return sum(tensor[0].numel() * tensor.element_size() for tensor in self._stored.values())

    def _columns(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return {name: tensor[start:stop] for name, tensor in self._stored.items()}

    def _rows(self, rows: Tensor) -> Mapping[str, Tensor]:
        rows = rows.to(self._place)
        return {name: tensor.index_select(0, rows) for name, tensor in self._stored.items()}


def to_columns(states: States, dtype: IndexDtype) -> dict[str, Tensor]:
    """The columns in which an index keeps these states, ``[entities, ...]``: values, hashes, and finiteness."""
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
                number = _fingerprint(stored, len(columns))
                state_hash = number if state_hash is None else state_hash + number
        assert state_hash is not None, f"the unit {unit!r} keeps nothing of an entity"
        columns[f"{unit}/{STATE_HASH}"] = state_hash
    length = len(next(iter(columns.values())))
    columns[FINITE] = torch.ones(length, dtype=torch.uint8) if finite is None else finite.to(torch.uint8)
    return columns


def _fingerprint(stored: Tensor, seed: int) -> Tensor:
    """A number per row, int64 ``[rows]``: equal rows have equal ones, others but by a chance of about 2^-60."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.element_size()]
    bits = stored.reshape(len(stored), -1).contiguous().view(words).long()
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * weights.to(bits.device)).sum(dim=1)  # modulo 2^64
