"""An entity index on disk, stored as a Lance dataset and read on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import StoreError
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.ranking.index import EntityIndex, Shard, unknown_ids
from mimic_pl.ranking.lance_dataset import (
    damaged_index,
    damaged_row,
    intact_records,
    lance,
    open_dataset,
    reading,
    records_with_ids,
    removed_or,
    require_complete,
    wrong_files,
)
from mimic_pl.ranking.lance_rows import INDEX, ORDER, differences
from mimic_pl.records import Entity
from mimic_pl.remote_path import Folder, RemotePath, folder_at


class LanceIndex(EntityIndex):
    """An index in a folder. Opening it reads the order numbers only, and a scan needs constant memory.

    The folder is a Lance dataset: a row has an entity's id, order number, name, text fields, image files, states and
    two checksums, which are verified whenever rows are read. Any number of processes may read it; each keeps the
    version that it opened while others write.

    It cannot be used in a process that was forked from one that has used Lance.

    Args:
        folder: Folder of the index, or ``s3://BUCKET/FOLDER``.
        expects: Values that its description must have: the model's fingerprint, the text template, and so on.
        device: Device on which blocks are returned.
        shard: Entities that this process scans; all by default.
        version: Version to open; the newest by default.

    Raises:
        StoreError: The index is missing, unfinished or damaged, was built by another model or from other data, or has
            no such version.
        MachineError: This process was forked from one that has used Lance.
    """

    @in_range(version=COUNT)
    def __init__(
        self,
        folder: Path | RemotePath | str,
        expects: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        shard: Shard | None = None,
        version: int | None = None,
    ) -> None:
        super().__init__(shard.processes if shard else ProcessGroup(alone=True), device)
        self.folder: Folder = folder_at(folder)
        opened = require_complete(self.folder, open_dataset(self.folder, version), INDEX)
        self._opened, self._dataset, self._format = opened, opened.dataset, opened.format
        if other := differences(self.description, expects or {}):
            raise StoreError(
                f"The {INDEX} in {self.folder} was built for {other}. Rebuild it in another folder, or delete this one "
                "first."
            )
        self._require_files()
        with reading(self.folder, self.version):
            order = self._dataset.to_table(columns=[ORDER]).column(ORDER).to_numpy()
        # In most cases they ascend; sorting a million takes longer than all the rest.
        ascending = order if (order[1:] > order[:-1]).all() else np.sort(order)
        if (ascending[1:] == ascending[:-1]).any():
            raise damaged_index(self.folder, "it has duplicate order numbers")
        self._len = len(order)
        self._dataset_rows = np.arange(len(order)) if shard is None else self._rows_of_shard(order, shard)
        self._order = torch.from_numpy(order[self._dataset_rows]).to(self.device)
        self._ids: Sequence[str] | None = None

    def __len__(self) -> int:
        """Number of entities in the knowledge base."""
        return self._len

    @property
    def order(self) -> Tensor:
        """Order numbers of the local entities, int64 ``[local]``."""
        return self._order

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the local entities, read on first access."""
        if self._ids is None:
            self._ids = [entity.id for entity in self.entities(self.order)]
        return self._ids

    @property
    def version(self) -> int:
        """Version of the dataset."""
        return self._opened.version

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of what the index was built from."""
        return self._format.description

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of one entity's states on disk, including state hashes."""
        return self._format.bytes_per_entity

    def entities(self, order: Tensor) -> list[Entity]:
        """Records of the local entities with these order numbers, int64 ``[n]``.

        Raises:
            DataError: No local entity has such an order number.
            StoreError: A row is damaged.
        """
        rows = self._dataset_rows[self._rows_of(order).cpu().numpy()]
        return intact_records(self.folder, self._format, self._read(rows, self._format.record_columns))

    def ids_of(self, order: Tensor) -> list[str]:
        """Ids of the local entities with these order numbers, int64 ``[n]``."""
        return [entity.id for entity in self.entities(order)]

    def order_of(self, ids: Sequence[str]) -> Tensor:
        """Order numbers of the local entities with these ids, int64 ``[n]``, which the engine looks up.

        Raises:
            DataError: No local entity has such an id.
            StoreError: A row is damaged.
        """
        found = {entity.id: number for number, entity in records_with_ids(self.folder, self._opened, ids)}
        order = torch.tensor([found.get(id, -1) for id in ids], dtype=torch.int64, device=self.device)
        if unknown := [ids[row] for row in (~self.holds(order)).nonzero()[:, 0].tolist()]:
            raise unknown_ids(unknown)
        return order

    def _slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return self._states(self._dataset_rows[start:stop])

    def _take(self, rows: Tensor) -> Mapping[str, Tensor]:
        return self._states(self._dataset_rows[rows.cpu().numpy()])

    def _states(self, rows: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """State columns of these rows of the dataset, ``[n, ...]``."""
        table = self._read(rows, self._format.state_columns)
        with reading(self.folder):
            columns, damaged = self._format.states(table)
        if damaged:
            raise damaged_row(self.folder, self._read(rows[damaged[:1]], ["id", ORDER]))
        return columns

    def _read(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        with reading(self.folder, self.version):
            lance()
            return self._dataset.take(rows, columns=columns)

    def _rows_of_shard(self, order: NDArray[np.int64], shard: Shard) -> NDArray[np.int64]:
        """Rows of the dataset that belong to a shard, in storage order."""
        if shard.total != len(order):
            raise StoreError(
                f"The {INDEX} in {self.folder} has {len(order)} entities, but the knowledge base has {shard.total}. "
                "Delete the folder to rebuild it."
            )
        expected = shard.order.cpu().numpy()
        if not np.isin(expected, order).all():
            raise damaged_index(self.folder, "entities of the knowledge base are missing")
        return np.flatnonzero(np.isin(order, expected))

    def _require_files(self) -> None:
        """Check that every data file exists and has the expected size."""
        if wrong := next(wrong_files(self.folder, self._dataset), None):
            error = StoreError(f"{wrong} Restore the folder from a copy, or delete it to rebuild it.")
            raise removed_or(self.folder, self.version, error)
