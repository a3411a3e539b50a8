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
from mimic_pl.home import expanded
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.ranking.lance_dataset import damaged_index, lance, open_dataset, reading
from mimic_pl.ranking.lance_rows import INDEX, RECORD_COLUMNS, STATE_CHECKSUM, differences
from mimic_pl.records import Entity


class LanceIndex(EntityIndex):
    """An index in a folder. Opening it reads the order numbers only, and a scan needs constant memory.

    The folder is a Lance dataset with the columns ``id``, ``order``, ``name``, ``fields`` (JSON), ``images``, the state
    columns and two checksums. Any number of processes may read it. Checksums are verified whenever rows are read.

    It cannot be used in a process that was forked from one that has used Lance.

    Args:
        folder: Folder of the index.
        expects: Values that its description must have: the model's fingerprint, the text template, and so on.
        device: Device on which blocks are returned.
        shard: Entities that this process scans; all by default.

    Raises:
        StoreError: The index is missing, unfinished or damaged, or was built by another model or from other data.
        MachineError: This process was forked from one that has used Lance.
    """

    def __init__(
        self,
        folder: Path | str,
        expects: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        shard: Shard | None = None,
    ) -> None:
        super().__init__(shard.processes if shard else ProcessGroup(alone=True), device)
        self.folder = expanded(folder)
        opened = open_dataset(self.folder)
        if opened is None or not opened.complete:
            rows = opened.dataset.count_rows() if opened else 0
            state = f"is unfinished: {rows} entities are written" if rows else "does not exist"
            raise StoreError(f"The {INDEX} in {self.folder} {state}. Run what builds it, or check the path.")
        self._dataset, self._format = opened.dataset, opened.format
        if other := differences(self.description, expects or {}):
            raise StoreError(
                f"The {INDEX} in {self.folder} was built for {other}. Rebuild it in another folder, or delete this one "
                "first."
            )
        self._require_files()
        with reading(self.folder):
            order = self._dataset.to_table(columns=["order"]).column("order").to_numpy()
        if len(np.unique(order)) != len(order):
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
        table = self._read(rows, list(RECORD_COLUMNS))
        with reading(self.folder):
            records, damaged = self._format.entities(table)
        self._require_intact(rows, damaged)
        return records

    def _slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return self._states(self._dataset_rows[start:stop])

    def _take(self, rows: Tensor) -> Mapping[str, Tensor]:
        return self._states(self._dataset_rows[rows.cpu().numpy()])

    def _states(self, rows: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """State columns of these rows of the dataset, ``[n, ...]``."""
        table = self._read(rows, ["order", *self._format.columns, STATE_CHECKSUM])
        with reading(self.folder):
            columns, damaged = self._format.states(table)
        self._require_intact(rows, damaged)
        return columns

    def _read(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        with reading(self.folder):
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
        for fragment in self._dataset.get_fragments():
            for file in fragment.metadata.files:
                path = self.folder / "data" / file.path
                if not path.exists():
                    raise StoreError(f"{path}, a part of the {INDEX}, is missing. Delete the folder to rebuild it.")
                size = path.stat().st_size
                if file.file_size_bytes not in (None, size):
                    raise StoreError(
                        f"{path} has {size} bytes instead of the {file.file_size_bytes} that the {INDEX} needs: it was "
                        "truncated or replaced. Delete the folder to rebuild it."
                    )

    def _require_intact(self, rows: NDArray[np.int64], damaged: int | None) -> None:
        if damaged is not None:
            name = self._read(rows[damaged : damaged + 1], ["id", "order"]).to_pylist()[0]
            raise damaged_index(
                self.folder, f"the entity {name['id']!r} with the order number {name['order']} fails its checksum"
            )
