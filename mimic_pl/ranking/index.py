"""The entity index: the units' states of every entity, looked up by order number or by id."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import DataError
from mimic_pl.quoting import listed
from mimic_pl.ranking.columns import FINITE, STATE_HASH
from mimic_pl.ranking.stored_states import StoredState
from mimic_pl.units import States, flat, nested


class Block(NamedTuple):
    """Some entities of an index.

    Attributes:
        states: Their states, decoded lazily.
        state_hashes: Hash of each entity's state by unit, int64 ``[entities]``; equal states have equal hashes.
        finite: Whether all values of an entity's states are finite, bool ``[entities]``.
    """

    states: States
    state_hashes: dict[str, Tensor]
    finite: Tensor


class Shard(NamedTuple):
    """The entities of a knowledge base that are local to a process.

    Attributes:
        order: Their order numbers, int64 ``[local]``.
        total: Number of entities in the knowledge base.
        processes: The processes whose shards together contain each entity once.
    """

    order: Tensor
    total: int
    processes: ProcessGroup

    @staticmethod
    def of(order: Tensor, processes: ProcessGroup) -> Shard:
        """This process's part of all entities, which are divided evenly.

        Args:
            order: The order numbers of all entities, int64 ``[entities]``, the same on all processes.
            processes: The processes.
        """
        return Shard(order.tensor_split(processes.world_size)[processes.rank], len(order), processes)

    @staticmethod
    def whole(total: int) -> Shard:
        """A single shard with all entities, whose order numbers count from 0."""
        return Shard(torch.arange(total), total, ProcessGroup(alone=True))


class EntityIndex(ABC):
    """States of the entities of a knowledge base, read in blocks: in memory or on disk.

    An entity has an id, a string, and an order number. Order numbers break ties and identify entities in top lists;
    they need not be contiguous. The order in which entities are stored has no meaning.

    With several processes, each has a shard.

    Args:
        processes: The processes that share the knowledge base.
        device: Device on which blocks are returned.
    """

    def __init__(self, processes: ProcessGroup, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.processes = processes
        self._sorted: tuple[Tensor, Tensor] | None = None
        self._row_of_id: dict[str, int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of entities in the knowledge base, on all processes."""

    @property
    @abstractmethod
    def order(self) -> Tensor:
        """Order numbers of the local entities, in storage order, int64 ``[local]``."""

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Ids of the local entities, in storage order."""

    @property
    def on_device(self) -> bool:
        """Whether states are kept on the device, so that a block costs nothing until it is used."""
        return False

    @property
    @abstractmethod
    def bytes_per_entity(self) -> int:
        """Bytes of one entity's states, including state hashes."""

    @abstractmethod
    def _slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        """Columns of the local entities in storage rows ``start`` to ``stop``, exclusive."""

    @abstractmethod
    def _take(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Columns of the local entities in these storage rows, int64 ``[n]``."""

    def order_of(self, ids: Sequence[str]) -> Tensor:
        """Order numbers of the entities with these ids, int64 ``[n]``.

        Raises:
            DataError: No local entity has such an id.
        """
        if self._row_of_id is None:
            self._row_of_id = {id: row for row, id in enumerate(self.ids)}
        unknown = [id for id in ids if id not in self._row_of_id]
        if unknown:
            raise unknown_ids(unknown)
        rows = torch.tensor([self._row_of_id[id] for id in ids], dtype=torch.int64, device=self.device)
        return self.order[rows]

    def ids_of(self, order: Tensor) -> list[str]:
        """Ids of the entities with these order numbers, int64 ``[n]``.

        Raises:
            DataError: No local entity has such an order number.
        """
        ids = self.ids
        return [ids[row] for row in self._rows_of(order).tolist()]

    def holds(self, order: Tensor) -> Tensor:
        """Whether the entities with these order numbers are local, bool of the same shape."""
        return self._find(order)[1]

    def select(self, order: Tensor) -> Block:
        """The local entities with these order numbers, int64 ``[n]``, in this order.

        Raises:
            DataError: No local entity has such an order number.
        """
        return self._block(self._take(self._rows_of(order)))

    def gather(self, order: Tensor) -> States:
        """States of the entities with these order numbers, gathered from all processes; collective.

        Args:
            order: int64 ``[n]``, without duplicates, the same on all processes.
        """
        if self.processes.world_size == 1:
            return self.select(order).states
        local = order[self.holds(order)]
        states = flat(self.select(local).states) if len(local) else {}
        # A process without any of these entities does not know the shapes.
        like = next(
            filter(None, self.processes.gather_objects({key: (t.dtype, t.shape[1:]) for key, t in states.items()}))
        )
        sent = [
            states[key] if states else torch.empty((0, *shape), dtype=dtype) for key, (dtype, shape) in like.items()
        ]
        parts = self.processes.gather([local, *(tensor.to(self.device) for tensor in sent)])
        gathered, *tensors = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        rows = gathered.argsort()[order.argsort().argsort()]
        return nested({key: tensor[rows] for key, tensor in zip(like, tensors, strict=True)})

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Block]]:
        """Iterate over the local entities in storage order.

        Yields:
            Order numbers of the entities of a block, int64 ``[n]``, and the block, of at most ``size`` entities.
        """
        order = self.order
        for start in range(0, len(order), size):
            stop = min(start + size, len(order))
            yield order[start:stop], self._block(self._slice(start, stop))

    def _rows_of(self, order: Tensor) -> Tensor:
        """Storage rows of the local entities with these order numbers, int64 ``[n]``."""
        rows, exists = self._find(order)
        if not exists.all():
            raise DataError(f"This process's index has no entity with the order number {int(order[~exists][0])}.")
        return rows

    def _find(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Storage rows of the local entities with these order numbers, and whether there is one.

        Args:
            order: int64 of any shape.
        """
        if self._sorted is None:
            self._sorted = self.order.sort()
        numbers, rows = self._sorted
        order = order.to(numbers.device)
        if not len(numbers):
            return torch.zeros_like(order), torch.zeros_like(order, dtype=torch.bool)
        positions = torch.searchsorted(numbers, order).clamp(max=len(numbers) - 1)
        return rows[positions], numbers[positions] == order

    def _forget_lookups(self) -> None:
        """Drop cached lookups of :meth:`order_of` and :meth:`select` after entities have changed."""
        self._sorted = self._row_of_id = None

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


def unknown_ids(ids: Sequence[str]) -> DataError:
    """The error about ids that no entity of an index has."""
    return DataError(f"There is no entity {listed(ids)}. Check the ids, or add it.")
