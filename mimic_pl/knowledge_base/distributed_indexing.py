"""Adding many entities to a knowledge base from several processes at once, in commits that survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import StoreError
from mimic_pl.knowledge_base.indexing import lacking
from mimic_pl.knowledge_base.statistics import Statistics
from mimic_pl.knowledge_base.writer import NewRows, Writer
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.lance_dataset import (
    COMPLETE,
    OpenDataset,
    intact_records,
    open_dataset,
    reading,
    records_with_ids,
)
from mimic_pl.ranking.lance_rows import ORDER
from mimic_pl.ranking.lance_writer import mark_complete, write_fragments
from mimic_pl.ranking.own_files import as_stored
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.records import Entity
from mimic_pl.units import States

T = TypeVar("T")


class DistributedIndexing:
    """Adds entities that several processes encode: each writes fragments of its own, and the first one commits them.

    The processes share the folder, as on a network file system. The first one holds the lock of the knowledge base, so
    what a process of a killed command may still write is never part of it. As with one process
    (:class:`~mimic_pl.knowledge_base.indexing.Indexing`), a first indexing can only be opened when it has ended, and
    killed, the same calls, from any number of processes, go on where it was.

    If the rows of a first indexing are the first entities in their order, as they are unless these have changed since
    it began, no commit reads the ids and order numbers of all rows, which would take hours for many millions.

    All methods but :meth:`missing` and ``len`` are collective.

    Args:
        folder: Folder of the knowledge base.
        dtype: Dtype of stored states.
        wait: Seconds to wait for another writer.
        processes: The processes.
        hashes: On the first process, for a first indexing, which ends with :meth:`complete`: Python's hashes of all
            ids, which are distinct, in their order.

    Raises:
        StoreError: Another process is still writing, or the knowledge base cannot be changed.
    """

    def __init__(
        self,
        folder: Path,
        dtype: IndexDtype,
        wait: float,
        processes: ProcessGroup,
        hashes: NDArray[np.int64] | None = None,
    ) -> None:
        self.folder = folder
        self.dtype: IndexDtype = dtype
        self.processes = processes
        self._writer: Writer | None = None
        self._opened: OpenDataset | None = None
        self._fragments: list[str] = []
        try:
            self._before, self._in_order, self._version = self._on_first(lambda: self._begin(wait, hashes))
        except BaseException:
            self._close()
            raise

    def missing(self, entities: Sequence[Entity], place: int) -> list[Entity]:
        """Those of these entities that are not written yet.

        Args:
            entities: Some thousands of the entities, in their order.
            place: Place of the first one among all.

        Raises:
            DataError: An entity was written with another record.
            StoreError: A row is damaged.
        """
        if not entities or not self._before or (self._in_order and place >= self._before):
            return list(entities)
        if self._in_order:
            known = self._rows(place, min(len(entities), self._before - place))
        else:
            known = [entity for _, entity in records_with_ids(self.folder, self._dataset(), [e.id for e in entities])]
        return lacking(self.folder, {entity.id: entity for entity in known}, entities)

    def write(self, entities: Sequence[Entity], states: States) -> int:
        """Write entities of all processes; they become part of the knowledge base with :meth:`commit`.

        Order numbers are those of :meth:`KnowledgeBase.add` for the entities of all processes, by rank.

        Args:
            entities: This process's entities, with new ids; maybe none.
            states: Their states, tensors ``[n, ...]``; empty if there are none.

        Returns:
            Number of the entities of all processes.

        Raises:
            DataError: An id is known or given twice.
            StoreError: The states are of another model, or the disk is full.
        """
        columns: dict[str, Tensor] = {}
        if entities:
            columns = {name: column.cpu() for name, column in to_columns(states, self.dtype).items()}
        own = self._together(lambda: NewRows.of(entities, columns) if entities else None)
        everyone = self.processes.gather_objects(own)
        rows = [part for part in everyone if part is not None]
        if not rows:
            return 0
        numbers, self._version = self._on_first(lambda: self._make_room(rows))
        before = sum(len(part.ids) for part in everyone[: self.processes.rank] if part is not None)
        order = numbers[before : before + len(entities)]
        written = self._together(lambda: self._write(entities, order, columns))
        self._fragments = [fragment for part in self.processes.gather_objects(written) for fragment in part]
        return len(numbers)

    def commit(self, statistics: Callable[[], Mapping[str, Statistics]] = dict) -> None:
        """Make what was written part of the knowledge base.

        Args:
            statistics: Called on the first process: statistics of the new version by name.
        """
        self._version = self._on_first(lambda: self._commit(statistics()))

    def complete(self, statistics: Mapping[str, Statistics]) -> None:
        """Keep statistics, and end a first indexing: the knowledge base can be opened.

        Args:
            statistics: Statistics of the whole knowledge base by name, those of the first process.
        """
        self._on_first(lambda: self._complete(statistics))

    def __len__(self) -> int:
        """Number of entities that are part of the knowledge base; on the first process only."""
        assert self._writer is not None, "this is the first process"
        return int(self._writer.opened.dataset.count_rows())

    def __enter__(self) -> DistributedIndexing:
        """The indexing itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock; what was committed stays."""
        self._close()

    def _together(self, work: Callable[[], T]) -> T:
        return self.processes.run_together(work)

    def _on_first(self, work: Callable[[], T]) -> T:
        return self.processes.run_on_first(work)

    def _dataset(self) -> OpenDataset:
        """The version that the first process has told, on every process."""
        if self._writer is not None:
            return self._writer.opened
        if self._opened is None or self._opened.version != self._version:
            self._opened = open_dataset(self.folder, self._version)
        if self._opened is None:
            raise StoreError(
                f"{self.folder} contains no knowledge base here, but the first process writes one. All processes need "
                "the same folder: on several machines, one of a network file system."
            )
        return self._opened

    def _rows(self, place: int, count: int) -> list[Entity]:
        """Entities by their place on disk."""
        opened = self._dataset()
        with reading(self.folder):
            table = opened.dataset.to_table(columns=opened.format.record_columns, offset=place, limit=count)
        return intact_records(self.folder, opened.format, table)

    def _write(self, entities: Sequence[Entity], order: Tensor, columns: Mapping[str, Tensor]) -> list[str]:
        if not entities:
            return []
        opened = self._dataset()
        table = opened.format.table(as_stored(entities, self.folder), order, columns)
        return write_fragments(opened, self.folder, table)

    # ---- on the first process -----------------------------------------------------------------------------------

    def _begin(self, wait: float, hashes: NDArray[np.int64] | None) -> tuple[int, bool, int]:
        """Number of rows, whether they are the first entities in their order, and the version."""
        self._writer = writer = Writer(self.folder, wait)
        if writer.opened.complete or hashes is None:
            writer.require_writable()
        rows = len(self)
        if hashes is not None and writer.opened.complete and not rows:  # unfinished until it has all rows
            writer.configure(COMPLETE, None)
        in_order = hashes is not None and writer.deleted.last() < 0 and self._begins_with(hashes)
        return rows, in_order, writer.version

    def _begins_with(self, hashes: NDArray[np.int64]) -> bool:
        """Whether the rows are entities with these hashes of ids and with the order numbers from 0."""
        assert self._writer is not None, "this is the first process"
        place = 0
        with reading(self.folder):
            for batch in self._writer.opened.dataset.to_batches(columns=["id", ORDER]):
                following = place + len(batch)
                found = np.fromiter(map(hash, batch.column("id").to_pylist()), np.int64)
                numbers = batch.column(ORDER).to_numpy()
                if not np.array_equal(found, hashes[place:following]):
                    return False
                if not np.array_equal(numbers, np.arange(place, following)):
                    return False
                place = following
        return True

    def _make_room(self, rows: Sequence[NewRows]) -> tuple[Tensor, int]:
        assert self._writer is not None, "this is the first process"
        numbers = self._writer.make_room_in_order(rows) if self._in_order else self._writer.make_room(rows)
        return numbers, self._writer.version

    def _commit(self, statistics: Mapping[str, Statistics]) -> int:
        assert self._writer is not None, "this is the first process"
        self._writer.append(self._fragments, statistics)
        self._fragments = []
        return self._writer.version

    def _complete(self, statistics: Mapping[str, Statistics]) -> None:
        assert self._writer is not None, "this is the first process"
        for name, values in statistics.items():
            self._writer.set_statistics({name: values})
        if not self._writer.opened.complete:
            mark_complete(self.folder)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
