"""The order numbers of deleted entities, which get them back if they are added again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pyarrow as pa

from mimic_pl.ranking.lance_dataset import address_of, damaged_index, dataset_at, dataset_exists, has_id, lance, reading
from mimic_pl.ranking.lance_writer import append_table, writing
from mimic_pl.remote_path import Folder, local_folder

FOLDER = "deleted"
"""Folder of the list in that of a knowledge base."""

_SCHEMA = pa.schema([("id", pa.string()), ("order", pa.int64()), ("crc32", pa.uint32())])


class DeletedEntities:
    """The ids of entities that have been deleted, with their order numbers, as a Lance dataset that only grows.

    An entity is listed before it is deleted, and stays listed when it is added again: the list says which number
    belongs to an id, and not whether there is such an entity.

    Args:
        folder: Folder of the knowledge base.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder: Folder = folder / FOLDER

    def order_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Order numbers by id of those of these ids that are listed.

        Raises:
            StoreError: The list is damaged.
        """
        return dict(self._rows(has_id(ids))) if ids else {}

    def ids_of(self, order: Sequence[int]) -> dict[int, str]:
        """Ids by order number of those of these numbers that are listed.

        Raises:
            StoreError: The list is damaged.
        """
        numbers = ",".join(map(str, order))
        return {number: id for id, number in self._rows(f"`order` IN ({numbers})")} if order else {}

    def last(self) -> int:
        """The largest order number; -1 if the list is empty.

        Raises:
            StoreError: The list is damaged.
        """
        if not self._exists:
            return -1
        with reading(self.folder):
            numbers = dataset_at(self.folder).to_table(columns=["order"]).column("order").to_numpy()
        return int(numbers.max(initial=-1))

    def add(self, order: Mapping[str, int]) -> None:
        """List entities that are about to be deleted.

        Args:
            order: Order numbers by id.

        Raises:
            StoreError: The list is damaged, or cannot be written.
        """
        listed = self.order_of(list(order))
        new = [(id, number) for id, number in order.items() if listed.get(id) != number]
        if not new:
            return
        table = pa.table(
            [[id for id, _ in new], [number for _, number in new], [_checksum(*row) for row in new]], schema=_SCHEMA
        )
        folder = local_folder(self.folder)
        if self._exists:
            append_table(folder, table)
        else:
            with writing(folder):
                lance().write_dataset(table, address_of(folder), mode="create")

    def compact(self, keep: timedelta) -> None:
        """Merge its files, and remove those that only versions older than ``keep`` need."""
        if self._exists:
            with writing(local_folder(self.folder)):
                dataset = dataset_at(self.folder)
                dataset.optimize.compact_files()
                dataset.cleanup_old_versions(keep, delete_unverified=True)

    def rows(self) -> list[tuple[str, int]]:
        """All ids with their order numbers.

        Raises:
            StoreError: The list is damaged.
        """
        return self._rows(None)

    @property
    def _exists(self) -> bool:
        return dataset_exists(self.folder)

    def _rows(self, condition: str | None) -> list[tuple[str, int]]:
        if not self._exists:
            return []
        with reading(self.folder):
            table = dataset_at(self.folder).to_table(filter=condition)
            rows = list(zip(*(table.column(name).to_pylist() for name in _SCHEMA.names), strict=True))
        for id, number, crc32 in rows:
            if _checksum(id, number) != crc32:
                raise damaged_index(self.folder, f"the deleted entity {id!r} fails its checksum")
        return [(id, number) for id, number, _ in rows]


def _checksum(id: str, order: int) -> int:
    return zlib.crc32(json.dumps([id, order]).encode())
