"""A knowledge base in a folder: entities with states, versions and filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimic_pl.errors import ConfigError, DataError, StoreError
from mimic_pl.knowledge_base.filters import distinct_values, filter_columns, matching
from mimic_pl.knowledge_base.indexing import Indexing
from mimic_pl.knowledge_base.statistics import Statistics, read_statistics
from mimic_pl.knowledge_base.verification import problems_of
from mimic_pl.knowledge_base.writer import Writer
from mimic_pl.quoting import listed
from mimic_pl.ranges import COUNT, NOT_NEGATIVE, in_range
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.lance_dataset import (
    COMPLETE,
    open_dataset,
    reading,
    records_with_ids,
    removed_or,
    require_complete,
    stored_ids,
    versions_of,
)
from mimic_pl.ranking.lance_index import LanceIndex
from mimic_pl.ranking.lance_rows import ORDER, RECORD_CHECKSUM, STATE_CHECKSUM, RowFormat, differences
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.records import Entity, as_sequence
from mimic_pl.remote_path import Folder, RemotePath, folder_at, local_folder, total_size
from mimic_pl.units import States


class Version(NamedTuple):
    """A version of a knowledge base.

    Attributes:
        number: Its number, by which it can be opened.
        time: When it was committed, in UTC.
        entities: Number of its entities.
    """

    number: int
    time: datetime
    entities: int


class KnowledgeBase:
    """One version of a knowledge base in a folder; changes return the next one.

    Opening reads no entity. It cannot be used in a process that was forked from one that has used Lance.

    In object storage it can only be read: it is built and changed in a local folder, and copied there, for example with
    ``aws s3 sync my_kb s3://bucket/my_kb``; credentials and endpoint are those of the environment (see
    :mod:`mimic_pl.remote_path`). Copied with the folders named ``_versions`` last, readers are not disturbed.

    Args:
        folder: Its folder, or its address in object storage: ``s3://BUCKET/FOLDER``.
        version: Version to open, read-only; the newest by default.
        device: Device of the index and of order numbers.
        expects: Values that its description must have, such as the fingerprint of the model.
        wait: Seconds that a change waits for another writer.

    Raises:
        StoreError: The knowledge base is missing, unfinished or damaged, is of another model, or has no such version.
        MachineError: This process was forked from one that has used Lance.
    """

    @in_range(version=COUNT, wait=NOT_NEGATIVE)
    def __init__(
        self,
        folder: Path | RemotePath | str,
        version: int | None = None,
        device: torch.device | str = "cpu",
        expects: Mapping[str, Any] | None = None,
        wait: float = 60.0,
    ) -> None:
        self._open(folder_at(folder), version, device, expects, wait)
        require_complete(self.folder, self._opened, "knowledge base")

    @classmethod
    def create(
        cls,
        folder: Path | str,
        description: Mapping[str, Any],
        dtype: IndexDtype = "float32",
        device: torch.device | str = "cpu",
        wait: float = 60.0,
    ) -> KnowledgeBase:
        """Create an empty knowledge base, or open the one that is there, also an unfinished one.

        Args:
            folder: Its folder.
            description: What the states depend on, as plain JSON values by name: the model's fingerprint, templates,
                settings of the processor.
            dtype: Dtype of stored states.
            device: Device of the index and of order numbers.
            wait: Seconds that a change waits for another writer.

        Raises:
            StoreError: The one that is there has another description or dtype, or the folder is not writable.
        """
        folder, description = local_folder(folder_at(folder)), {**description, "dtype": dtype}
        made = cls.__new__(cls)
        if open_dataset(folder) is not None:
            made._open(folder, None, device, description, wait)
            if made._opened.complete or len(made):
                return made
        with Writer(folder, wait, create=RowFormat({}, description)) as writer:
            if not writer.opened.dataset.count_rows():
                writer.configure(COMPLETE, "true")
        made._open(folder, None, device, description, wait)
        return made

    def _open(
        self,
        folder: Folder,
        version: int | None,
        device: torch.device | str,
        expects: Mapping[str, Any] | None,
        wait: float,
    ) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.wait = wait
        self._pinned = version is not None
        opened = open_dataset(folder, version)
        if opened is None:
            how = "index" if isinstance(folder, Path) else "copy"
            raise StoreError(f"{folder} contains no knowledge base. Check the path, or {how} one there.")
        self._opened = opened
        if other := differences(self.description, expects or {}):
            raise StoreError(
                f"The knowledge base in {folder} was built for {other}. Use the model that it was built with, or "
                "index it again in another folder."
            )

    def __len__(self) -> int:
        """Number of entities."""
        with reading(self.folder):
            return int(self._opened.dataset.count_rows())

    @property
    def version(self) -> int:
        """Number of this version."""
        return self._opened.version

    @property
    def description(self) -> Mapping[str, Any]:
        """What the states depend on, as given to :meth:`create`, and their dtype."""
        return self._opened.format.description

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that filters may refer to: ``id``, ``name`` and the text fields."""
        return filter_columns(self._opened)

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of one entity's states."""
        return self._opened.format.bytes_per_entity

    @property
    def parts(self) -> int:
        """Number of parts that its rows are stored in: one for each change since it was last compacted."""
        return len(self._opened.dataset.get_fragments())

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all files in the folder, those of other versions included."""
        return total_size(self.folder)

    @cached_property
    def index(self) -> LanceIndex:
        """The entities of this version, for :class:`~mimic_pl.ranking.Ranker`; read from the folder in blocks."""
        return LanceIndex(self.folder, device=self.device, version=self.version)

    def versions(self) -> list[Version]:
        """All versions that can still be opened, oldest first."""
        return [
            Version(each["version"], each["timestamp"].astimezone(timezone.utc), int(each["metadata"]["total_rows"]))
            for each in versions_of(self.folder)
        ]

    def entities(self, order: Tensor) -> list[Entity]:
        """Records of the entities with these order numbers, int64 ``[n]``.

        Images that were not files when they were added are left out.

        Raises:
            DataError: No entity has such an order number.
            StoreError: A row is damaged.
        """
        return self.index.entities(order)

    def ids_of(self, order: Tensor) -> list[str]:
        """Ids of the entities with these order numbers, int64 ``[n]``."""
        return self.index.ids_of(order)

    def order_of(self, ids: Sequence[str]) -> Tensor:
        """Order numbers of the entities with these ids, int64 ``[n]``.

        Raises:
            DataError: No entity has such an id.
            StoreError: A row is damaged.
        """
        return self.index.order_of(ids)

    def known(self, ids: Sequence[str]) -> dict[str, Entity]:
        """Records by id of those of these ids that entities have.

        Raises:
            StoreError: A row is damaged.
        """
        return {entity.id: entity for _, entity in records_with_ids(self.folder, self._opened, ids)}

    def has(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that entities have, damaged ones included."""
        return {*stored_ids(self.folder, self._opened, ids)}

    def where(self, expression: str) -> Tensor:
        """Order numbers of the entities that an expression selects, ascending, int64 ``[n]``.

        Args:
            expression: A condition in the engine's SQL over :attr:`columns`, such as ``type = 'person'``.

        Raises:
            DataError: The expression is no condition over the columns.
            StoreError: The knowledge base is damaged.
        """
        return matching(self.folder, self._opened, expression).to(self.device)

    def checksums(self) -> tuple[Tensor, Tensor]:
        """Order numbers of all entities, ascending, and a checksum of each one's record and states, int64 ``[n]`` each.

        What is derived from entities follows a knowledge base by them: an entity with the same number and checksum has
        not changed.

        Raises:
            StoreError: The knowledge base is damaged.
        """
        with reading(self.folder, self.version):
            table = self._opened.dataset.to_table(columns=[ORDER, RECORD_CHECKSUM, STATE_CHECKSUM])
            order, record, state = (torch.from_numpy(table.column(i).to_numpy().astype(np.int64)) for i in range(3))
        order, rows = order.sort()
        return order, (record << 32 | state)[rows]

    def values(self, column: str) -> list[str]:
        """The distinct texts of one of the :attr:`columns`, sorted; empty ones are left out.

        Raises:
            DataError: There is no such column.
            StoreError: The knowledge base is damaged.
        """
        if column not in self.columns:
            raise DataError(
                f"The knowledge base in {self.folder} has no column {column!r}, only {listed(self.columns)}."
            )
        return distinct_values(self.folder, self._opened, column)

    def add(
        self,
        entities: Iterable[Entity | Mapping[str, Any]],
        states: States,
        order: Tensor | None = None,
        statistics: Mapping[str, Statistics] | None = None,
    ) -> KnowledgeBase:
        """Add entities to the newest version, in one commit.

        Args:
            entities: Records with new ids.
            states: Their states, tensors ``[n, ...]``.
            order: Their order numbers, int64 ``[n]``. By default, an entity that was deleted gets its number again, and
                the others continue from the largest number so far.
            statistics: Statistics of the new version by name; see :meth:`statistics`.

        Returns:
            The new version.

        Raises:
            DataError: An id is known or given twice, or an order number belongs to another entity.
            StoreError: The states are of another model; another process is still writing; the disk is full.
        """
        records = [Entity.of(entity) for entity in as_sequence(entities)]
        with self._writing() as writer:
            if records:
                writer.add(records, to_columns(states, self.dtype), order, statistics or {})
            elif statistics:
                writer.set_statistics(statistics)
            return self._newest()

    def update(
        self,
        entities: Iterable[Entity | Mapping[str, Any]],
        states: States,
        statistics: Mapping[str, Statistics] | None = None,
    ) -> KnowledgeBase:
        """Replace records and states of entities of the newest version, in one commit; order numbers stay.

        This also repairs damaged entities.

        Args:
            entities: Records with known ids.
            states: Their states, tensors ``[n, ...]``.
            statistics: Statistics of the new version by name.

        Returns:
            The new version.

        Raises:
            DataError: An id is unknown or given twice.
            StoreError: The states are of another model; another process is still writing; the disk is full.
        """
        records = [Entity.of(entity) for entity in as_sequence(entities)]
        with self._writing() as writer:
            if records:
                writer.update(records, to_columns(states, self.dtype), statistics or {})
            elif statistics:
                writer.set_statistics(statistics)
            return self._newest()

    def delete(self, ids: Sequence[str], statistics: Mapping[str, Statistics] | None = None) -> KnowledgeBase:
        """Delete entities of the newest version, damaged ones included, in one commit.

        Args:
            ids: Their ids.
            statistics: Statistics of the new version by name.

        Returns:
            The new version.

        Raises:
            DataError: An id is unknown or given twice.
            StoreError: Another process is still writing, or the disk is full.
        """
        with self._writing() as writer:
            if ids := list(ids):
                writer.delete(ids, statistics or {})
            elif statistics:
                writer.set_statistics(statistics)
            return self._newest()

    def statistics(self, name: str) -> dict[str, Any] | None:
        """Statistics of the whole knowledge base that were kept with this version, or with one before it.

        Args:
            name: Their name.

        Returns:
            Arrays and plain values by name; None if there are none.

        Raises:
            StoreError: They are damaged.
        """
        return read_statistics(self.folder, name, self.version)

    def set_statistics(self, name: str, values: Statistics) -> KnowledgeBase:
        """Keep statistics of the whole knowledge base with a new version.

        To keep them with a change of entities, pass them to :meth:`add`, :meth:`update` or :meth:`delete`: either both
        are committed, or neither.

        Args:
            name: Their name: letters, digits, hyphens and underscores.
            values: Small numpy arrays and plain JSON values by name.

        Returns:
            The new version.
        """
        with self._writing() as writer:
            writer.set_statistics({name: values})
            return self._newest()

    def compact(self, keep_hours: float = 24.0) -> KnowledgeBase:
        """Merge the files of many small changes, drop deleted rows, and remove old versions.

        Args:
            keep_hours: Age of the versions to keep, in hours. Readers of older ones must open the knowledge base again.

        Returns:
            The newest version.

        Raises:
            StoreError: Another process is still writing, or the disk is full.
        """
        if not keep_hours >= 0:
            raise ConfigError(f"keep_hours is {keep_hours}, but must be a number of hours from 0.")
        with self._writing() as writer:
            writer.compact(timedelta(hours=keep_hours))
            return self._newest()

    def verify(self, show_progress_bar: bool = False) -> list[str]:
        """Read every row of this version and compare all checksums, sizes of files, ids and order numbers.

        Args:
            show_progress_bar: Show a progress bar, with rate and time left, if it takes some seconds.

        Returns:
            What is wrong, one sentence for each damaged entity or file; empty if nothing is. Of a version that a
            compaction has removed since it was opened, only that.
        """
        problems = list(problems_of(self.folder, self._opened, show_progress_bar))
        return [str(removed_or(self.folder, self.version, StoreError()))] if problems and self._removed else problems

    @property
    def _removed(self) -> bool:
        try:
            return self.version not in [version.number for version in self.versions()]
        except StoreError:  # another version is damaged
            return False

    def indexing(self) -> Indexing:
        """Add many entities: a context that writes them in large parts; see :class:`Indexing`."""
        return Indexing(local_folder(self.folder), self.dtype, self.wait, self.device)

    @property
    def dtype(self) -> IndexDtype:
        """Dtype of stored states."""
        return self.description.get("dtype", "float32")

    def _writing(self) -> Writer:
        if self._pinned:
            raise StoreError(
                f"Version {self.version} of the knowledge base in {self.folder} was opened for reading. Open it "
                "without a version to change it."
            )
        writer = Writer(local_folder(self.folder), self.wait)
        try:
            writer.require_writable()
        except BaseException:
            writer.close()
            raise
        return writer

    def _newest(self) -> KnowledgeBase:
        return type(self)(self.folder, None, self.device, None, self.wait)
