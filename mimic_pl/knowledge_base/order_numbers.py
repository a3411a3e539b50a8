"""Order numbers of entities: those that rows have, damaged ones included, and those that new entities get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from mimic_pl.errors import DataError, StoreError
from mimic_pl.knowledge_base.deleted_entities import DeletedEntities
from mimic_pl.quoting import quoted
from mimic_pl.ranking.index import unknown_ids
from mimic_pl.ranking.lance_dataset import OpenDataset, has_id, reading, storable
from mimic_pl.ranking.lance_rows import ORDER, Decode
from mimic_pl.remote_path import Folder


class OrderNumbers:
    """The order numbers of one version of a knowledge base.

    Args:
        folder: Folder of the knowledge base.
        opened: The version.
        deleted: The numbers of deleted entities.
    """

    def __init__(self, folder: Folder, opened: OpenDataset, deleted: DeletedEntities) -> None:
        self.folder = folder
        self.opened = opened
        self.deleted = deleted

    def of(self, ids: Sequence[str]) -> dict[str, int]:
        """Order numbers of entities by id. An entity that has lost its number to damage has none.

        Two checksums of a row cover its number: the number is right if either of them is.

        Raises:
            DataError: An id is unknown.
        """
        table = self._read(ids, ["id", ORDER])
        names, order = (table.column(name).to_pylist() for name in ("id", ORDER))
        rows = Counter(names)
        if unknown := [id for id in ids if id not in rows]:
            raise unknown_ids(unknown)
        row_format = self.opened.format
        intact = self._intact(ids, row_format.record_columns, row_format.entities)
        if left := [id for id in ids if id not in intact]:
            intact |= self._intact(left, ["id", *row_format.state_columns], row_format.states)
        return {id: number for id, number in zip(names, order, strict=True) if id in intact and rows[id] == 1}

    def of_new(self, ids: Sequence[str], order: Tensor | None) -> Tensor:
        """Order numbers of new entities, int64 ``[n]``: their own if they were deleted, then from the largest one on.

        Args:
            ids: Their ids.
            order: The numbers to give them, int64 ``[n]``.

        Raises:
            DataError: A number belongs to another entity.
        """
        before = self.deleted.order_of(ids)
        with reading(self.folder):
            taken = torch.from_numpy(self.opened.dataset.to_table(columns=[ORDER]).column(ORDER).to_numpy().copy())
        if order is None:
            following = max(int(taken.max()) if len(taken) else -1, self.deleted.last()) + 1
            numbers = []
            for id in ids:
                numbers.append(before.get(id, following))
                following += id not in before
            order = torch.tensor(numbers, dtype=torch.int64)
        elif order.dtype != torch.int64 or order.shape != (len(ids),) or bool(order.lt(0).any()):
            raise ValueError(
                f"order is {order.dtype} {list(order.shape)}: one number from 0 for each of {len(ids)} entities"
            )
        else:
            order = order.cpu()
            self._require_own(ids, order, before)
        ascending = order.sort().values
        # The few new numbers are sorted, not the many taken ones.
        places = torch.searchsorted(ascending, taken).clamp(max=len(ascending) - 1)
        twice = torch.cat([taken[ascending[places] == taken], ascending[1:][ascending.diff() == 0]])
        if len(twice):
            raise DataError(
                f"The order number {int(twice[0])} belongs to another entity. Leave out order, or pass new numbers."
            )
        return order

    def _require_own(self, ids: Sequence[str], order: Tensor, before: Mapping[str, int]) -> None:
        """Check that given order numbers are not those of other entities, deleted ones included."""
        owners = self.deleted.ids_of(order.tolist())
        for id, number in zip(ids, order.tolist(), strict=True):
            if number != before.get(id, number) or owners.get(number, id) != id:
                raise DataError(
                    f"{quoted(id)} cannot get the order number {number}, which "
                    + (f"was {quoted(owners[number])}'s" if number in owners else f"was {before[id]}")
                    + " before it was deleted. Leave out order, so that deleted entities get theirs back."
                )

    def _read(self, ids: Sequence[str], columns: list[str]) -> pa.Table:
        known = [id for id in ids if storable(id)]
        with reading(self.folder):
            return self.opened.dataset.to_table(
                filter=has_id(known) if known else "false", columns=columns, late_materialization=True
            )

    def _intact(self, ids: Sequence[str], columns: list[str], decode: Decode) -> set[str]:
        """Those of these ids whose rows can be read and have the right checksum over these columns."""
        try:
            table = self._read(ids, columns)
            with reading(self.folder):
                _, damaged = decode(table)
                names = table.column("id").to_pylist()
        except StoreError:  # something that cannot even be read makes all rows that are read with it unreadable
            if len(ids) == 1:
                return set()
            middle = len(ids) // 2
            return self._intact(ids[:middle], columns, decode) | self._intact(ids[middle:], columns, decode)
        return {*names} - {names[row] for row in damaged}
