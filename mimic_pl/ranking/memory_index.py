"""An entity index in device or host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import DataError
from mimic_pl.ranges import in_range, one_of
from mimic_pl.ranking.columns import FINITE, to_columns
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.units import States


class MemoryIndex(EntityIndex):
    """A growable index in memory.

    Args:
        device: Device on which blocks are returned.
        dtype: Dtype in which floating-point states are stored.
        on_host: Keep the states in host memory, whatever the device.
        capacity: Number of entities to allocate memory for initially, so that states need not be copied when it grows;
            more may be added.
        shard: The entities of this process, if the knowledge base is sharded; also sets the capacity.

    Example:
        >>> index = MemoryIndex(dtype="bfloat16")  # doctest: +SKIP
        >>> index.add([entity.id for entity in entities], model.matcher.entity(features))  # doctest: +SKIP
    """

    @in_range(dtype=one_of(IndexDtype))
    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: IndexDtype = "float32",
        on_host: bool = False,
        capacity: int = 0,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(shard.processes if shard else ProcessGroup(alone=True), device)
        self.dtype: IndexDtype = dtype
        self._storage = torch.device("cpu") if on_host else self.device
        self._elsewhere = shard.total - len(shard.order) if shard else 0
        self._capacity = len(shard.order) if shard else capacity
        self._columns: dict[str, Tensor] = {}
        self._order = torch.empty(0, dtype=torch.int64, device=self.device)
        self._ids: list[str] = []
        self._known: set[str | int] = set()

    def add(self, ids: Sequence[str], states: States, order: Tensor | None = None) -> None:
        """Add entities.

        Args:
            ids: Ids.
            states: States, tensors ``[n, ...]``.
            order: Order numbers, int64 ``[n]``; by default they continue from the largest one so far.

        Raises:
            DataError: An id or an order number is already in the index, or duplicated.
        """
        columns = to_columns(states, self.dtype)
        if order is None:
            first = int(self.order.max()) + 1 if self._ids else 0
            order = torch.arange(first, first + len(ids))
        if not len(ids) == len(order) == len(columns[FINITE]):
            raise ValueError(f"{len(ids)} ids, {len(order)} order numbers, states of {len(columns[FINITE])} entities")
        self._require_new(ids, order.tolist())
        start, stop = len(self._ids), len(self._ids) + len(ids)
        self._reserve(stop, columns)
        for name, tensor in columns.items():
            self._columns[name][start:stop] = tensor.to(self._storage)
        self._order[start:stop] = order.to(self.device)
        self._ids.extend(ids)
        self._forget_lookups()

    def __len__(self) -> int:
        """Number of entities in the knowledge base: those added here plus those of other processes."""
        return self._elsewhere + len(self._ids)

    @property
    def order(self) -> Tensor:
        """Order numbers of the entities added here, int64 ``[local]``."""
        return self._order[: len(self._ids)]

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the entities added here."""
        return self._ids

    @property
    def on_device(self) -> bool:
        """Whether states are kept on the device, and not in host memory."""
        return self._storage == self.device

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of one entity's states, including state hashes."""
        return sum(tensor[0].numel() * tensor.element_size() for tensor in self._columns.values())

    def _require_new(self, ids: Sequence[str], order: Sequence[int]) -> None:
        for what, new in (("id", ids), ("order number", order)):
            seen: set[str | int] = set()
            for value in new:
                if value in self._known or value in seen:
                    raise DataError(f"An entity with the {what} {value!r} is already in the index. Add each one once.")
                seen.add(value)
        self._known.update(ids, order)

    def _reserve(self, size: int, columns: Mapping[str, Tensor]) -> None:
        """Allocate for ``size`` entities, growing by at least half, so that adding takes amortized constant time."""
        if size <= len(self._order) and self._columns:
            return
        capacity = max(size, self._capacity, len(self._order) * 3 // 2)
        # Pinned, so that copies to the device overlap with computation.
        pinned = self._storage != self.device and self.device.type == "cuda"
        old, self._columns = self._columns, {}
        for name, tensor in columns.items():
            room = torch.empty(
                (capacity, *tensor.shape[1:]), dtype=tensor.dtype, device=self._storage, pin_memory=pinned
            )
            if name in old:
                room[: len(self._ids)] = old.pop(name)[: len(self._ids)]
            self._columns[name] = room
        order = torch.empty(capacity, dtype=torch.int64, device=self.device)
        order[: len(self._ids)] = self.order
        self._order = order

    def _slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return {name: tensor[start:stop] for name, tensor in self._columns.items()}

    def _take(self, rows: Tensor) -> Mapping[str, Tensor]:
        rows = rows.to(self._storage)
        return {name: tensor.index_select(0, rows) for name, tensor in self._columns.items()}
