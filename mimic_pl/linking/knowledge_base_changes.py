"""Building and changing a knowledge base with a model: encodes what is new, and keeps the statistics up to date."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from mimic_pl.errors import DataError, StoreError
from mimic_pl.files import lock_folder
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.knowledge_base.indexing import lacking
from mimic_pl.linking import unit_totals
from mimic_pl.linking.compatibility import SOURCE, STATISTICS, describe, fitted, require_same
from mimic_pl.linking.entity_records import EntityRecords, chunks
from mimic_pl.linking.intact_entities import IntactEntities
from mimic_pl.model import MIMIC
from mimic_pl.processor import Processor
from mimic_pl.quoting import listed
from mimic_pl.ranking import IndexDtype
from mimic_pl.ranking.stored_states import joined
from mimic_pl.records import Entity
from mimic_pl.remote_path import Folder, local_folder
from mimic_pl.units import States

_log = logging.getLogger(__name__)

DRIFT = "drift"
"""Name under which it keeps which features have drifted so far that indexing again is advised, and how far."""

AT_ONCE = 4096
"""Entities of one commit."""

WAIT = 600.0
"""Seconds that a change waits for another one, which encodes its entities meanwhile."""


def advice(folder: Folder, drifted: Mapping[str, float]) -> str:
    """What to do about a knowledge base that has drifted; see :attr:`Processor.drifted`."""
    how = ", ".join(f"{name} by {drift:.0%}" for name, drift in drifted.items())
    return (
        f"Indexing the entities of {folder} again, in another folder, is advised: they have changed so much that what "
        f"their encoding assumes of all of them is off ({how})."
    )


class KnowledgeBaseWriter:
    """Builds and changes a knowledge base with a model.

    Args:
        model: Encodes the entities.
        weights: Of :func:`weights_of`.
        batch_size: Entities that are encoded at once.
        show_progress_bar: Show how many entities are encoded, with rate and time left.
        source: Where the model was loaded from.
    """

    def __init__(
        self, model: MIMIC, weights: str, batch_size: int, show_progress_bar: bool, source: str | None = None
    ) -> None:
        self.model = model
        self.source = source
        self.weights = weights
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar

    def index(self, records: EntityRecords, folder: Path, dtype: IndexDtype) -> KnowledgeBase:
        """Encode all entities into a folder, or those that it lacks."""
        total = records.count(self.show_progress_bar)
        require_some(records, total)
        kb = self._existing(folder)
        if kb is not None:
            return self._extend(kb, records, total, dtype)
        processor = self.model.processor.fit(records)
        description = describe(self.model, processor, self.weights)
        kb = KnowledgeBase.create(folder, description, dtype, self.model.device, WAIT)
        with kb.indexing() as indexing, self._bar(total) as bar:
            for chunk in chunks(records, AT_ONCE):
                missing = indexing.missing(chunk)
                bar.update(len(chunk) - len(missing))
                for batch, states in self._encoded(missing, processor, bar):
                    indexing.add(batch, states)
            indexing.set_statistics(SOURCE, {"model": self.source})
            indexing.set_statistics(STATISTICS, stored(processor))
        self.model.processor.log_failures(alone=True)
        kb = KnowledgeBase(folder, device=self.model.device)
        totals = unit_totals.statistics(unit_totals.totals_of(self.model, kb), len(kb))
        for name, values in totals.items():
            kb = kb.set_statistics(name, values)
        return kb

    def add(self, kb: KnowledgeBase, records: EntityRecords) -> KnowledgeBase:
        """Add entities with new ids."""
        return self._put(kb, records, replace=False)

    def update(self, kb: KnowledgeBase, records: EntityRecords) -> KnowledgeBase:
        """Replace entities with known ids."""
        return self._put(kb, records, replace=True)

    def delete(self, kb: KnowledgeBase, ids: Sequence[str]) -> KnowledgeBase:
        """Delete entities."""
        with self._changing(kb) as kb:
            _require(kb, ids, known=True)
            return kb.delete(ids, statistics=self._statistics(kb, ids, [], {}))

    def _put(self, kb: KnowledgeBase, records: EntityRecords, replace: bool) -> KnowledgeBase:
        """Add or replace entities, in commits of some thousands, after checking all ids."""
        with self._changing(kb) as kb:
            total = sum(_require(kb, ids, known=replace) for ids in chunks((e.id for e in records), AT_ONCE))
            with self._bar(total) as bar:
                for chunk in chunks(records, AT_ONCE):
                    kb = self._commit(kb, chunk, bar, replace)
        self.model.processor.log_failures(alone=True)
        return kb

    def _extend(self, kb: KnowledgeBase, records: EntityRecords, total: int, dtype: IndexDtype) -> KnowledgeBase:
        """Add the entities that a knowledge base lacks."""
        with self._changing(kb) as kb, self._bar(total) as bar:
            require_same(kb, {"dtype": dtype})
            for chunk in chunks(records, AT_ONCE):
                missing = lacking(local_folder(kb.folder), kb.known([entity.id for entity in chunk]), chunk)
                bar.update(len(chunk) - len(missing))
                if missing:
                    kb = self._commit(kb, missing, bar, replace=False)
        self.model.processor.log_failures(alone=True)
        return kb

    def _commit(self, kb: KnowledgeBase, entities: Sequence[Entity], bar: Any, replace: bool) -> KnowledgeBase:
        """Add or replace entities, and what changes with them, in one commit."""
        processor = fitted(self.model.processor, kb)
        states = joined([own for _, own in self._encoded(entities, processor, bar)])
        of_added = unit_totals.added_totals(self.model, kb.dtype, states)
        statistics = self._statistics(kb, [entity.id for entity in entities] if replace else [], entities, of_added)
        return (kb.update if replace else kb.add)(entities, states, statistics=statistics)

    def _statistics(
        self, kb: KnowledgeBase, removed: Sequence[str], added: Sequence[Entity], of_added: unit_totals.Totals
    ) -> dict[str, Any]:
        """Statistics of a knowledge base after a change, to be committed with it.

        Args:
            kb: The knowledge base before the change.
            removed: Ids of entities that are deleted or replaced.
            added: Entities that are added or replace others.
            of_added: Totals of their states.
        """
        processor = fitted(self.model.processor, kb)
        try:
            before = kb.known(removed)
            of_removed = unit_totals.removed_totals(self.model, kb, removed) if removed else {}
            after = processor.updated(added, before.values())
            totals = unit_totals.changed(unit_totals.totals_of(self.model, kb), of_added, of_removed)
        except StoreError:
            _log.warning(f"{kb.folder} has damaged entities: its statistics are counted again, from the others.")
            rest = IntactEntities(kb, removed, added)
            after = processor.recounted(rest)
            totals = rest.totals(self.model, of_added) if self.model.matcher.has_totals else {}
        found = {STATISTICS: stored(after), **unit_totals.statistics(totals, len(kb) - len(removed) + len(added))}
        return found if after.drifted == (kb.statistics(DRIFT) or {}) else {**found, DRIFT: after.drifted}

    def _existing(self, folder: Path) -> KnowledgeBase | None:
        """The complete knowledge base in a folder, if any; not one of an indexing that was killed as it began."""
        try:
            kb = KnowledgeBase(folder, device=self.model.device, wait=WAIT)
        except StoreError:  # none, or an unfinished one; what is damaged is found again when it is opened
            return None
        return None if kb.statistics(STATISTICS) is None else kb

    @contextmanager
    def _changing(self, kb: KnowledgeBase) -> Iterator[KnowledgeBase]:
        """The newest version, while no other process changes statistics that depend on all entities."""
        lock = lock_folder(local_folder(kb.folder), WAIT, ".changes.lock")
        try:
            newest = KnowledgeBase(kb.folder, device=self.model.device, wait=WAIT)
            require_same(newest, describe(self.model, fitted(self.model.processor, newest), self.weights))
            yield newest
        finally:
            lock.release()

    def _encoded(
        self, entities: Sequence[Entity], processor: Processor, bar: Any
    ) -> Iterator[tuple[list[Entity], States]]:
        model = self.model
        training = model.training
        model.eval()
        try:
            for batch in chunks(entities, self.batch_size):
                inputs = model.batch_encoder().to_device({"entities": processor.entities(batch)})["entities"]
                with torch.no_grad():
                    states = model.entity_states(inputs)
                bar.update(len(batch))
                yield batch, states
        finally:
            model.train(training)

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, desc="Indexing", unit=" entities", disable=not self.show_progress_bar)


def require_some(records: EntityRecords, total: int) -> None:
    """Check that there are entities to index."""
    if not total:
        raise DataError(f"There are no entities to index{'' if records.path is None else f' in {records.path}'}.")


def _require(kb: KnowledgeBase, ids: Sequence[str], known: bool) -> int:
    """Check that a knowledge base has all of these ids, or none; returns their number."""
    has = kb.has(ids)
    if not known and has:
        raise DataError(
            f"The knowledge base in {kb.folder} already has {listed(sorted(has))}. Update them, or leave them out."
        )
    if known and (unknown := [id for id in ids if id not in has]):
        raise DataError(
            f"The knowledge base in {kb.folder} has no {listed(unknown)}. Check the ids, or add such entities."
        )
    return len(ids)


def stored(processor: Processor) -> dict[str, Any]:
    """The statistics of a processor; single numbers as plain values."""
    return {name: _plain(np.asarray(value)) for name, value in processor.statistics().items()}


def _plain(array: Any) -> Any:
    return array.item() if array.ndim == 0 else array
