"""The writer of a knowledge base: every change is one commit of the newest version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from mimic_pl.errors import DataError, StoreError
from mimic_pl.files import lock_folder
from mimic_pl.knowledge_base.deleted_entities import FOLDER, DeletedEntities
from mimic_pl.knowledge_base.order_numbers import OrderNumbers
from mimic_pl.knowledge_base.statistics import Statistics, remove_old, remove_uncommitted, write_statistics
from mimic_pl.quoting import listed, quoted
from mimic_pl.ranking.columns import FINITE
from mimic_pl.ranking.lance_dataset import (
    OpenDataset,
    address_of,
    lance,
    open_dataset,
    storable,
    stored_ids,
)
from mimic_pl.ranking.lance_rows import RowFormat, StateColumn
from mimic_pl.ranking.lance_writer import (
    WRITER_LOCK,
    append_fragments,
    append_table,
    finish_deletion,
    remove_unfinished,
    writing,
)
from mimic_pl.ranking.own_files import as_stored
from mimic_pl.ranking.text_columns import column_of
from mimic_pl.records import Entity

MAX_FIELDS = 1000
"""Maximum number of distinct text fields, each of which is a column."""

COMPACTED_BYTES = 2_000_000_000
"""Target size of a fragment after compaction."""

_MOST_ROWS = 1 << 20
_BATCH = 1024

STATISTICS_VERSION = "mimic_pl.statistics"
"""Key in the configuration of the dataset: the last version that only changed statistics."""

OF_EVALUATION = "number of entities"
"""Key of a description that only an index of an evaluation has."""


class NewRows(NamedTuple):
    """What the writer must know of rows to make room for them.

    Attributes:
        ids: Ids of the entities.
        fields: Names of all their text fields.
        columns: The columns of their states.
    """

    ids: list[str]
    fields: set[str]
    columns: Mapping[str, StateColumn]

    @classmethod
    def of(cls, entities: Sequence[Entity], columns: Mapping[str, Tensor]) -> NewRows:
        """Check rows that are about to be written.

        Args:
            entities: Their records.
            columns: Their state columns, ``[n, ...]``.

        Raises:
            DataError: An id cannot be stored, or states are not finite.
        """
        finite = columns[FINITE].bool()
        if len(entities) != len(finite):
            raise ValueError(f"{len(entities)} entities, states of {len(finite)}")
        if wrong := [entity.id for entity in entities if not storable(entity.id)]:
            raise DataError(f"The id {quoted(wrong[0])} contains half of a character, which cannot be stored.")
        if wrong := [entities[row].id for row in (~finite).nonzero()[:, 0].tolist()]:
            raise DataError(f"The states of {listed(wrong)} are not finite, so that nothing could be ranked with them.")
        fields = {field for entity in entities for field in entity.fields}
        return cls([entity.id for entity in entities], fields, RowFormat.of(columns, {}).columns)


class Writer:
    """Holds the lock of a knowledge base and changes its newest version.

    Args:
        folder: Folder of the knowledge base.
        wait: Seconds to wait for another writer.
        create: Columns and description of a knowledge base to create if there is none.

    Raises:
        StoreError: Another process is still writing, or the folder is not writable or contains no knowledge base.
    """

    def __init__(self, folder: Path, wait: float, create: RowFormat | None = None) -> None:
        self.folder = folder
        self.deleted = DeletedEntities(folder)
        self._lock = lock_folder(folder, wait, WRITER_LOCK.format(0))
        try:
            finish_deletion(folder)
            if create is not None and open_dataset(folder) is None:
                self._write_empty(create, "create")
            self.reopen()
            remove_uncommitted(folder, self.version)
            remove_unfinished(folder)
            remove_unfinished(folder / FOLDER)
        except BaseException:
            self.close()
            raise

    def reopen(self) -> None:
        """Open the newest version."""
        opened = open_dataset(self.folder)
        if opened is None:
            raise StoreError(f"{self.folder} contains no knowledge base. Check the path, or index one there.")
        self.opened: OpenDataset = opened

    @property
    def format(self) -> RowFormat:
        """Columns of the newest version."""
        return self.opened.format

    @property
    def version(self) -> int:
        """Number of the newest version."""
        return self.opened.version

    @property
    def _numbers(self) -> OrderNumbers:
        return OrderNumbers(self.folder, self.opened, self.deleted)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> Writer:
        """The writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self.close()

    def require_writable(self) -> None:
        """Check that entities may be changed.

        Raises:
            StoreError: It is an index of an evaluation, or its first indexing was interrupted.
        """
        if OF_EVALUATION in self.format.description:
            raise StoreError(
                f"{self.folder} is the index of an evaluation and stays as it is. Index a knowledge base of your own "
                "in another folder."
            )
        if not self.opened.complete:
            raise StoreError(
                f"The knowledge base in {self.folder} is unfinished: its indexing was interrupted. Run it again first."
            )

    def add(
        self,
        entities: Sequence[Entity],
        columns: Mapping[str, Tensor],
        order: Tensor | None,
        statistics: Mapping[str, Statistics],
    ) -> None:
        """Add entities; see :meth:`KnowledgeBase.add`."""
        numbers = self.make_room([NewRows.of(entities, columns)], order)
        table = self.format.table(as_stored(entities, self.folder), numbers, columns)
        self._commit(lambda: append_table(self.folder, table), statistics)

    def make_room(self, rows: Sequence[NewRows], order: Tensor | None = None) -> Tensor:
        """Check new rows, and make sure that there are columns for them.

        Args:
            rows: The rows, in parts.
            order: The order numbers to give them, int64 ``[n]``.

        Returns:
            The order numbers that they get, int64 ``[n]``.

        Raises:
            DataError: An id is known or given twice, or an order number belongs to another entity.
            StoreError: The states are of another model or dtype.
        """
        self._check(rows)
        ids = [id for part in rows for id in part.ids]
        if known := stored_ids(self.folder, self.opened, ids):
            raise DataError(f"The knowledge base already has {listed(known)}. Update an entity to change it.")
        numbers = self._numbers.of_new(ids, order)
        self._add_columns(rows)
        return numbers

    def make_room_in_order(self, rows: Sequence[NewRows]) -> Tensor:
        """:meth:`make_room` for rows that are known to be new, if the order numbers so far are those from 0 on.

        It does not read the ids and order numbers of all rows.
        """
        self._check(rows)
        self._add_columns(rows)
        before = self.opened.dataset.count_rows()
        return torch.arange(before, before + sum(len(part.ids) for part in rows))

    def append(self, fragments: Sequence[str], statistics: Mapping[str, Statistics]) -> None:
        """Add rows that are written already, by :func:`write_fragments`, after :meth:`make_room`."""
        self._commit(lambda: append_fragments(self.folder, fragments, self.version), statistics)

    def update(
        self, entities: Sequence[Entity], columns: Mapping[str, Tensor], statistics: Mapping[str, Statistics]
    ) -> None:
        """Replace entities; see :meth:`KnowledgeBase.update`."""
        rows = [NewRows.of(entities, columns)]
        self._check(rows)
        order = self._numbers.of([entity.id for entity in entities])
        if lost := [entity.id for entity in entities if entity.id not in order]:
            raise StoreError(
                f"{listed(lost)} cannot be updated: the order number is damaged, or several rows have the id. Delete "
                "such entities and add them again."
            )
        self._add_columns(rows)
        numbers = torch.tensor([order[entity.id] for entity in entities])
        table = self.format.table(as_stored(entities, self.folder), numbers, columns)

        def commit() -> None:
            with writing(self.folder, table.nbytes):
                merge = self.opened.dataset.merge_insert("id").when_matched_update_all().conflict_retries(0)
                counts = merge.execute(table)
            self._require_count(counts["num_updated_rows"], len(table))

        self._commit(commit, statistics)

    def delete(self, ids: Sequence[str], statistics: Mapping[str, Statistics]) -> None:
        """Delete entities; see :meth:`KnowledgeBase.delete`."""
        _require_distinct(ids)
        self.deleted.add(self._numbers.of(ids))
        rows = len(stored_ids(self.folder, self.opened, ids))

        def commit() -> None:
            with writing(self.folder):
                merge = self.opened.dataset.merge_insert("id").when_matched_delete().conflict_retries(0)
                counts = merge.execute(pa.table({"id": pa.array(ids, pa.string())}))
            self._require_count(counts["num_deleted_rows"], rows)

        self._commit(commit, statistics)

    def set_statistics(self, statistics: Mapping[str, Statistics]) -> None:
        """Keep statistics with a new version."""
        following = str(self.version + 1)
        self._commit(lambda: self.configure(STATISTICS_VERSION, following), statistics)

    def compact(self, keep: timedelta) -> None:
        """Merge fragments, and remove versions older than ``keep``; see :meth:`KnowledgeBase.compact`."""
        self.deleted.compact(keep)
        rows = min(_MOST_ROWS, max(1, COMPACTED_BYTES // max(1, self.format.bytes_per_entity)))
        with writing(self.folder):
            dataset = self.opened.dataset
            dataset.optimize.compact_files(target_rows_per_fragment=rows, batch_size=_BATCH, num_threads=1)
            # Files that no version needs are those of killed writers: there is no other writer now.
            dataset.cleanup_old_versions(keep, delete_unverified=True)
            oldest = min(version["version"] for version in dataset.versions())
        remove_old(self.folder, oldest)
        self.reopen()

    def configure(self, key: str, value: str | None) -> None:
        """Set a key of the dataset's configuration, or remove it."""
        with writing(self.folder):
            dataset = self.opened.dataset
            dataset.delete_config_keys([key]) if value is None else dataset.update_config({key: value})
        self.reopen()

    def _write_empty(self, row_format: RowFormat, mode: str) -> None:
        with writing(self.folder):
            lance().write_dataset(row_format.schema.empty_table(), address_of(self.folder), mode=mode)

    def _commit(self, commit: Callable[[], None], statistics: Mapping[str, Statistics]) -> None:
        expected = self.version + 1
        if statistics:
            write_statistics(self.folder, statistics, expected)
        commit()
        self.reopen()
        if self.version != expected:
            raise StoreError(
                f"Another process has changed {self.folder} without its lock: version {self.version} instead of "
                f"{expected}. Make sure that only mimic-pl writes there, and verify the knowledge base."
            )

    def _check(self, rows: Sequence[NewRows]) -> None:
        _require_distinct([id for part in rows for id in part.ids])
        expected = self.format.columns or rows[0].columns
        for part in rows:
            if part.columns != expected:
                differing = {name for name, _ in {*part.columns.items()} ^ {*expected.items()}}
                raise StoreError(
                    f"The states are of another model or dtype than those of the knowledge base in {self.folder}: "
                    f"{listed(sorted(differing))} differ. Index it again in another folder."
                )

    def _add_columns(self, rows: Sequence[NewRows]) -> None:
        """Make sure that there are columns for the states and for all text fields."""
        if not self.format.columns:
            self._write_empty(RowFormat(rows[0].columns, self.format.description), "overwrite")
            self.reopen()
        new = sorted(set().union(*(part.fields for part in rows)) - {*self.format.fields})
        if not new:
            return
        if len(new) + len(self.format.fields) > MAX_FIELDS:
            raise DataError(
                f"The entities have {len(new) + len(self.format.fields):,} distinct text fields ({listed(new)}), of "
                f"which a knowledge base has {MAX_FIELDS:,} at most. Put rare ones into one field."
            )
        with writing(self.folder):
            self.opened.dataset.add_columns([pa.field(column_of(field), pa.string()) for field in new])
        self.reopen()

    def _require_count(self, changed: int, expected: int) -> None:
        if changed != expected:
            raise StoreError(
                f"{changed} rows of {self.folder} changed instead of {expected}: it has rows with the same id. Verify "
                "the knowledge base."
            )


def _require_distinct(ids: Sequence[str]) -> None:
    if len({*ids}) < len(ids):
        twice = sorted({id for id in ids if ids.count(id) > 1}) if len(ids) < 1000 else ids
        raise DataError(f"An entity is given twice, among {listed(twice)}. Give each one once.")
