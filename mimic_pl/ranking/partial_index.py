"""Indexes made from another one: of some of its entities, or kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mimic_pl.ranking.index import EntityIndex

_ROWS_AT_ONCE = 4096
"""Rows that are read at once: some 80 MB at published sizes."""


class PartialIndex(EntityIndex):
    """Some entities of an index, with their order numbers: ranking it equals ranking an index of only these.

    Args:
        index: The index, held by this process; or its shard of it.
        order: Order numbers of the entities, int64 ``[n]``, the same on all processes; repeated ones count once.

    Raises:
        DataError: The index, if it is held by this process alone, has no such order number.
    """

    def __init__(self, index: EntityIndex, order: Tensor) -> None:
        super().__init__(index.processes, index.device)
        self._index = index
        self._len = len(torch.unique(order))
        local = order if index.processes.world_size == 1 else order[index.holds(order)]
        self._rows = torch.unique(index._rows_of(local))  # sorted, as rows are stored
        self._order = index.order[self._rows.to(index.order.device)]

    def __len__(self) -> int:
        """Number of these entities, on all processes."""
        return self._len

    @property
    def order(self) -> Tensor:
        """Order numbers of the local ones, in storage order, int64 ``[local]``."""
        return self._order

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the local ones, in storage order."""
        return self._index.ids_of(self._order)

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of one entity's states, including state hashes."""
        return self._index.bytes_per_entity

    def _slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return self._index._take(self._rows[start:stop])

    def _take(self, rows: Tensor) -> Mapping[str, Tensor]:
        return self._index._take(self._rows[rows.to(self._rows.device)])


class ResidentIndex(EntityIndex):
    """All local entities of an index that is read on demand, kept on its device as they are stored.

    Args:
        index: The index.
    """

    def __init__(self, index: EntityIndex) -> None:
        super().__init__(index.processes, index.device)
        self._index = index
        self._columns: dict[str, Tensor] = {}
        total = len(index.order)
        for start in range(0, total, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, total)
            for name, part in index._slice(start, stop).items():
                if name not in self._columns:
                    self._columns[name] = torch.empty((total, *part.shape[1:]), dtype=part.dtype, device=self.device)
                self._columns[name][start:stop] = part.to(self.device)

    def __len__(self) -> int:
        """Number of entities in the knowledge base, on all processes."""
        return len(self._index)

    @property
    def order(self) -> Tensor:
        """Order numbers of the local entities, in storage order, int64 ``[local]``."""
        return self._index.order

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the local entities, in storage order."""
        return self._index.ids

    @property
    def on_device(self) -> bool:
        """Whether states are kept on the device, which they are."""
        return True

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of one entity's states, including state hashes."""
        return self._index.bytes_per_entity

    def _slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return {name: tensor[start:stop] for name, tensor in self._columns.items()}

    def _take(self, rows: Tensor) -> Mapping[str, Tensor]:
        return {name: tensor.index_select(0, rows.to(self.device)) for name, tensor in self._columns.items()}
