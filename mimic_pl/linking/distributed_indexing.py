"""Building a knowledge base with several processes, each of which encodes a share of the entities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import DataError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.knowledge_base.distributed_indexing import DistributedIndexing
from mimic_pl.linking import unit_totals
from mimic_pl.linking.compatibility import SOURCE, STATISTICS, describe, require_same
from mimic_pl.linking.entity_records import EntityRecords
from mimic_pl.linking.knowledge_base_changes import (
    AT_ONCE,
    WAIT,
    KnowledgeBaseWriter,
    require_some,
    stored,
)
from mimic_pl.model import MIMIC
from mimic_pl.processor import Processor
from mimic_pl.ranking import IndexDtype, LanceIndex, index_totals
from mimic_pl.ranking.index import Shard
from mimic_pl.ranking.stored_states import joined
from mimic_pl.records import Entity
from mimic_pl.units import States

T = TypeVar("T")


class DistributedKnowledgeBaseWriter(KnowledgeBaseWriter):
    """Builds a knowledge base with several processes: the same one as :class:`KnowledgeBaseWriter` builds with one.

    Every process reads all records, and encodes its share: in each round, the first process takes the next some
    thousand entities, the second one those after them, and so on. A round is one commit, so that a kill costs a round
    at most, and an error of one process ends all of them after it.

    Args:
        processes: The processes, each of which has such a writer.
        model: Encodes the entities.
        weights: Of :func:`weights_of`.
        batch_size: Entities that a process encodes at once.
        show_progress_bar: Show how many entities are encoded by all processes, on the first one.
        source: Where the model was loaded from.
    """

    def __init__(
        self,
        processes: ProcessGroup,
        model: MIMIC,
        weights: str,
        batch_size: int,
        show_progress_bar: bool,
        source: str | None = None,
    ) -> None:
        super().__init__(model, weights, batch_size, show_progress_bar and processes.rank == 0, source)
        self.processes = processes

    def index(self, records: EntityRecords, folder: Path, dtype: IndexDtype) -> KnowledgeBase:
        """Encode all entities into a folder, or those that it lacks; collective."""
        processes = self.processes
        hashes = processes.run_together(lambda: None if processes.rank else self._hashed(records))
        total = processes.run_on_first(lambda: 0 if hashes is None else len(hashes))
        extends = processes.run_on_first(lambda: self._existing(folder) is not None)
        with ExitStack() as stack:  # of the first process's locks
            begin = self._extended if extends else self._created
            statistics = processes.run_on_first(lambda: begin(stack, records, folder, dtype))
            processor = processes.run_together(lambda: self.model.processor.with_statistics(statistics))
            self._require_same(processor, records)
            indexing = DistributedIndexing(folder, dtype, WAIT, processes, None if extends else hashes)
            with indexing, self._bar(total) as bar:
                self._add(indexing, records, total, processor, extends, bar)
                if not extends:
                    processes.run_on_first(lambda: _require_all(records, total, len(indexing), folder))
                    indexing.complete({SOURCE: {"model": self.source}, STATISTICS: statistics})
        self.model.processor.report.log(self.model.processor.image_policy, processes)
        if not extends and self.model.matcher.has_totals:
            self._keep_totals(folder)
        return processes.run_together(lambda: KnowledgeBase(folder, device=self.model.device))

    def _hashed(self, records: EntityRecords) -> NDArray[np.int64]:
        """Hashes of all ids, after a check of all records."""
        hashes = records.id_hashes(self.show_progress_bar)
        require_some(records, len(hashes))
        return hashes

    def _created(self, stack: ExitStack, records: EntityRecords, folder: Path, dtype: IndexDtype) -> dict[str, Any]:
        """Create the knowledge base; statistics of the fitted processor."""
        processor = self.model.processor.fit(records)
        KnowledgeBase.create(folder, describe(self.model, processor, self.weights), dtype, self.model.device, WAIT)
        return stored(processor)

    def _extended(self, stack: ExitStack, records: EntityRecords, folder: Path, dtype: IndexDtype) -> dict[str, Any]:
        """Lock the knowledge base for a change; its statistics of the processor."""
        kb = stack.enter_context(self._changing(KnowledgeBase(folder, device=self.model.device, wait=WAIT)))
        require_same(kb, {"dtype": dtype})
        return kb.statistics(STATISTICS) or {}

    def _require_same(self, processor: Processor, records: EntityRecords) -> None:
        """Check that all processes have the same model and the same entities."""

        def own() -> str:
            size = None if records.path is None else records.path.stat().st_size
            return repr((describe(self.model, processor, self.weights), size))

        self.processes.require_same(own, "models, or different files of entities")

    def _add(
        self,
        indexing: DistributedIndexing,
        records: EntityRecords,
        total: int,
        processor: Processor,
        extends: bool,
        bar: Any,
    ) -> None:
        """Add all entities, or those that are missing, in rounds."""
        processes = self.processes
        own = share(records, total, self.batch_size, processes)

        def encode() -> tuple[int, list[Entity], States, unit_totals.Totals]:
            place, entities = next(own)
            missing = indexing.missing(entities, place)
            encoded = [states for _, states in self._encoded(missing, processor, tqdm(disable=True))]
            states = joined(encoded) if encoded else {}
            extending = extends and encoded
            totals = unit_totals.added_totals(self.model, indexing.dtype, states) if extending else {}
            return len(entities), missing, states, totals

        for _ in range(rounds(total, self.batch_size, processes)):
            read, missing, states, totals = processes.run_together(encode)
            if indexing.write(missing, states):
                added = processes.gather_objects((missing, totals)) if extends else []
                indexing.commit(partial(self._following, indexing.folder, added) if added else dict)
            bar.update(sum(count for (count,) in processes.gather_integers(read, device=torch.device("cpu"))))

    def _following(
        self, folder: Path, added: Sequence[tuple[list[Entity], unit_totals.Totals]]
    ) -> dict[str, dict[str, Any]]:
        """Statistics of the knowledge base after a round."""
        entities = [entity for some, _ in added for entity in some]
        totals = reduce(unit_totals.summed, (some for _, some in added))
        return self._statistics(KnowledgeBase(folder, device=self.model.device), [], entities, totals)

    def _keep_totals(self, folder: Path) -> None:
        """Keep the totals of the units, each process reading its share of the states."""
        processes = self.processes

        def read() -> unit_totals.Totals:
            order = KnowledgeBase(folder).index.order
            shard = Shard.of(order, processes)._replace(processes=ProcessGroup(alone=True))  # summed below
            return index_totals(self.model.matcher, LanceIndex(folder, device=self.model.device, shard=shard))

        own = {name: total.cpu() for name, total in processes.run_together(read).items()}
        totals = reduce(unit_totals.summed, processes.gather_objects(own))

        def keep() -> None:
            kb = KnowledgeBase(folder, wait=WAIT)
            for name, values in unit_totals.statistics(totals, len(kb)).items():
                kb = kb.set_statistics(name, values)

        processes.run_on_first(keep)


def share_size(total: int, batch_size: int, processes: ProcessGroup) -> int:
    """Entities of a process in a round: whole batches, so that each batch is one that a single process encodes."""
    return min(AT_ONCE, math.ceil(total / (processes.world_size * batch_size)) * batch_size)


def rounds(total: int, batch_size: int, processes: ProcessGroup) -> int:
    """Number of rounds."""
    return math.ceil(total / (share_size(total, batch_size, processes) * processes.world_size))


def share(records: Iterable[T], total: int, batch_size: int, processes: ProcessGroup) -> Iterator[tuple[int, list[T]]]:
    """A process's records of each round, maybe none in the last one, after the place of the first of them."""
    size = share_size(total, batch_size, processes)
    iterator, read = iter(records), 0
    for place in range(processes.rank * size, total + processes.world_size * size, processes.world_size * size):
        next(islice(iterator, place - read, place - read), None)  # those of the other processes
        yield place, list(islice(iterator, size))
        read = place + size


def _require_all(records: EntityRecords, total: int, indexed: int, folder: Path) -> None:
    if indexed < total:
        raise DataError(
            f"{records.path or 'The records'} had {total:,} entities, but only {indexed:,} are in {folder}: the file "
            "was changed meanwhile. Index it in another folder."
        )
