"""Adding many entities to a knowledge base, in parts that survive a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mimic_pl.errors import DataError
from mimic_pl.knowledge_base.statistics import Statistics
from mimic_pl.knowledge_base.writer import Writer
from mimic_pl.quoting import listed
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.lance_dataset import COMPLETE, records_with_ids
from mimic_pl.ranking.lance_rows import RowFormat
from mimic_pl.ranking.lance_writer import mark_complete, rows_per_fragment
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.records import Entity
from mimic_pl.units import States


class Indexing:
    """Adds entities in parts of some thousands, each of which is a commit.

    The first indexing of an empty knowledge base can only be opened when it has ended; killed, the same calls go on
    where it was: :meth:`missing` says which entities are not written yet. Other writers wait until it has ended.

    Example:
        >>> kb = KnowledgeBase.create("my_kb", description)  # doctest: +SKIP
        >>> with kb.indexing() as indexing:  # doctest: +SKIP
        ...     for batch in batches:
        ...         if new := indexing.missing(batch):
        ...             indexing.add(new, encode(new))
        >>> kb = KnowledgeBase("my_kb")  # doctest: +SKIP
    """

    def __init__(self, folder: Path, dtype: IndexDtype, wait: float, device: torch.device) -> None:
        self.folder = folder
        self.dtype: IndexDtype = dtype
        self._device = device
        self._buffer: list[tuple[list[Entity], dict[str, Tensor], Tensor | None]] = []
        self._rows = 0
        self._writer = Writer(folder, wait)
        try:
            self._first = not self._writer.opened.complete
            if not self._first:
                self._writer.require_writable()
            self._empty = self._writer.opened.dataset.count_rows() == 0
        except BaseException:
            self._writer.close()
            raise

    def missing(self, entities: Sequence[Entity]) -> list[Entity]:
        """Those of these entities that are not written yet; ask for some thousands at once.

        Raises:
            DataError: An entity was written with another record.
        """
        if self._empty:
            return list(entities)
        written = records_with_ids(self.folder, self._writer.opened, [entity.id for entity in entities])
        return lacking(self.folder, {entity.id: entity for _, entity in written}, entities)

    def add(self, entities: Sequence[Entity], states: States, order: Tensor | None = None) -> None:
        """Add entities; they are written when enough have come together, and at the end.

        Args:
            entities: Records with new ids.
            states: Their states, tensors ``[n, ...]``.
            order: Their order numbers, int64 ``[n]``; by default as in :meth:`KnowledgeBase.add`, in the order of
                calls. All calls pass them, or none.

        Raises:
            DataError: An id is known or given twice, or an order number belongs to another entity.
            StoreError: The states are of another model, or the disk is full.
        """
        if not entities:
            return
        columns = {name: column.cpu() for name, column in to_columns(states, self.dtype).items()}
        self._buffer.append((list(entities), columns, order))
        self._rows += len(entities)
        if self._rows >= rows_per_fragment(RowFormat.of(columns, {})):
            self.flush()

    def flush(self) -> None:
        """Write what has come together, in one commit."""
        if not self._buffer:
            return
        entities = [entity for some, _, _ in self._buffer for entity in some]
        columns = {name: torch.cat([some[name] for _, some, _ in self._buffer]) for name in self._buffer[0][1]}
        given = [order for _, _, order in self._buffer if order is not None]
        if given and len(given) < len(self._buffer):
            raise ValueError("order numbers must be given in all calls or in none")
        self._begin()
        self._writer.add(entities, columns, torch.cat(given) if given else None, {})
        self._buffer.clear()
        self._rows = 0

    def set_statistics(self, name: str, values: Statistics) -> None:
        """Keep statistics of the whole knowledge base; see :meth:`KnowledgeBase.set_statistics`."""
        self.flush()
        self._begin()
        self._writer.set_statistics({name: values})

    def __enter__(self) -> Indexing:
        """The indexing itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the rest; after an error, what was written stays, and the indexing is unfinished."""
        try:
            if kind is None:
                self.flush()
                if self._first:
                    mark_complete(self.folder)
        finally:
            self._writer.close()

    def _begin(self) -> None:
        """Mark an empty knowledge base as unfinished before its first row is written."""
        if self._empty and not self._first:
            self._writer.configure(COMPLETE, None)
            self._first = True


def lacking(folder: Path, known: Mapping[str, Entity], entities: Sequence[Entity]) -> list[Entity]:
    """Those of these entities that a knowledge base lacks.

    Args:
        folder: Folder of the knowledge base.
        known: Its entities with these ids, by id.
        entities: The entities.

    Raises:
        DataError: It has one of them with another record.
    """
    changed = [entity.id for entity in entities if entity.id in known and not _same(known[entity.id], entity)]
    if changed:
        raise DataError(
            f"The knowledge base in {folder} already has {listed(changed)}, with other texts or images. Update them, "
            "or index in another folder."
        )
    return [entity for entity in entities if entity.id not in known]


def _same(written: Entity, given: Entity) -> bool:
    images = tuple(str(image) for image in given.images if isinstance(image, (str, Path)))
    return (written.name, written.fields, written.images) == (given.name, given.fields, images)
