"""A model and a knowledge base that it built: indexing, opening, adding, updating and deleting entities."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.compatibility import describe, fitted, require_same, weights_of
from mimic_pl.linking.distributed_indexing import DistributedKnowledgeBaseWriter
from mimic_pl.linking.entity_records import EntityRecords
from mimic_pl.linking.knowledge_base_changes import KnowledgeBaseWriter, advice
from mimic_pl.linking.unit_totals import centered_model
from mimic_pl.model import MIMIC
from mimic_pl.processor.images import ImageReport
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.ranking import IndexDtype
from mimic_pl.records import Entity, as_sequence
from mimic_pl.remote_path import Folder, folder_at, local_folder

_log = logging.getLogger(__name__)

EntityRecord = Entity | Mapping[str, Any]


class ModelWithKnowledgeBase:
    """Encodes entities into knowledge bases, and has one of them open, which it can change.

    Args:
        model: The model, of which it has a copy that shares the weights.

    Attributes:
        source: Where the model was loaded from, if known; a knowledge base remembers it.
    """

    def __init__(self, model: MIMIC) -> None:
        self.model = copy.copy(model)
        self.model.processor = copy.copy(model.processor)
        self.model.processor.report = ImageReport()
        self.source: str | None = None
        self._knowledge_base: KnowledgeBase | None = None
        self._drifted: Folder | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @cached_property
    def _entity_weights(self) -> str:
        return weights_of(self.model)

    @property
    def knowledge_base(self) -> KnowledgeBase:
        """The version of the knowledge base that is open.

        Raises:
            ConfigError: There is none.
        """
        if self._knowledge_base is None:
            raise ConfigError(
                "The linker has no knowledge base. Build one with linker.index(records_or_file, folder), and open it "
                "with linker = linker.with_knowledge_base(folder)."
            )
        return self._knowledge_base

    def index(
        self,
        records: Iterable[EntityRecord] | str | Path,
        folder: str | Path,
        batch_size: int = 64,
        show_progress_bar: bool = True,
        dtype: IndexDtype = "float32",
        format: str | None = None,
        image_folder: str | Path | None = None,
        processes: ProcessGroup | None = None,
    ) -> KnowledgeBase:
        """Encode entities into a folder. Killed, the same call goes on where it was.

        In a folder with a knowledge base of the same model, entities that it lacks are added.

        Several processes build the knowledge base of one: each calls this with the same arguments, on a device of its
        own, and encodes its share of the entities. (With a ``batch_size`` that does not divide 4,096, some are encoded
        in other batches, and their states may differ in the last bits.)

        Args:
            records: Entities, dictionaries with ``id``, ``name``, ``image`` or ``images`` and the fields of the text
                template, or a file in any of the :mod:`~mimic_pl.formats`.
            folder: Folder of the knowledge base.
            batch_size: Entities that are encoded at once.
            show_progress_bar: Show a progress bar with rate and time left.
            dtype: Dtype of stored states; see :data:`~mimic_pl.ranking.quantization.IndexDtype`.
            format: Layout of the file; recognised by default.
            image_folder: Folder that relative paths of images begin in: by default the file's own, and the working
                directory for records.
            processes: The processes that index together, with a folder that all of them see; this one alone by default.

        Raises:
            DataError: A record is malformed, two entities share an id, or there are no entities.
            StoreError: The folder has a knowledge base of another model, or the disk is full.
        """
        entities = EntityRecords(records, format, image_folder)
        writer = self._writer(batch_size, show_progress_bar, processes)
        return writer.index(entities, local_folder(folder_at(folder)), dtype)

    def with_knowledge_base(self, knowledge_base: KnowledgeBase | str | Path) -> Self:
        """The same with this knowledge base, given as a folder or an address, or opened.

        Raises:
            StoreError: It is missing, unfinished or damaged, or was built by another model; the message says what
                differs.
        """
        other = copy.copy(self)
        other._open(knowledge_base)
        return other

    def add_entities(
        self,
        records: Iterable[EntityRecord] | str | Path,
        batch_size: int = 64,
        show_progress_bar: bool = False,
        format: str | None = None,
        image_folder: str | Path | None = None,
    ) -> KnowledgeBase:
        """Add entities to the knowledge base; only these are encoded. The linker then uses the new version.

        Args:
            records: Entities with new ids, or a file; for all arguments see :meth:`index`.
            batch_size: Entities that are encoded at once.
            show_progress_bar: Show a progress bar.
            format: Layout of the file.
            image_folder: Folder of images.

        Returns:
            The new version.

        Raises:
            DataError: A record is malformed, or an id is known or given twice.
        """
        writer = self._writer(batch_size, show_progress_bar)
        return self._moved(writer.add(self.knowledge_base, EntityRecords(records, format, image_folder)))

    def update_entities(
        self,
        records: Iterable[EntityRecord] | str | Path,
        batch_size: int = 64,
        show_progress_bar: bool = False,
        format: str | None = None,
        image_folder: str | Path | None = None,
    ) -> KnowledgeBase:
        """Replace entities of the knowledge base by id; see :meth:`add_entities`.

        Raises:
            DataError: A record is malformed, or an id is unknown or given twice.
        """
        writer = self._writer(batch_size, show_progress_bar)
        return self._moved(writer.update(self.knowledge_base, EntityRecords(records, format, image_folder)))

    def delete_entities(self, ids: Sequence[str]) -> KnowledgeBase:
        """Delete entities of the knowledge base; see :meth:`add_entities`.

        Raises:
            DataError: An id is unknown or given twice.
        """
        return self._moved(self._writer(1, False).delete(self.knowledge_base, as_sequence(ids)))

    def _writer(
        self, batch_size: int, show_progress_bar: bool, processes: ProcessGroup | None = None
    ) -> KnowledgeBaseWriter:
        require_ranges({"batch_size": COUNT}, {"batch_size": batch_size}, "")
        arguments = (self.model, self._entity_weights, batch_size, show_progress_bar, self.source)
        if processes is None or processes.world_size == 1:
            return KnowledgeBaseWriter(*arguments)
        return DistributedKnowledgeBaseWriter(processes, *arguments)

    def _moved(self, newest: KnowledgeBase) -> KnowledgeBase:
        self._open(newest)
        return newest

    def _open(self, given: KnowledgeBase | str | Path) -> None:
        kb = given if isinstance(given, KnowledgeBase) else KnowledgeBase(given)
        if kb.device != self.device:
            kb = KnowledgeBase(kb.folder, kb.version, self.device)
        processor = fitted(self.model.processor, kb)
        require_same(kb, describe(self.model, processor, self._entity_weights))
        model = copy.copy(centered_model(self.model, kb))
        model.processor = processor
        self._use(model, kb)
        if processor.drifted and self._drifted != kb.folder:  # once, and not with every change
            self._drifted = kb.folder
            _log.warning(advice(kb.folder, processor.drifted))

    def _use(self, model: MIMIC, knowledge_base: KnowledgeBase) -> None:
        """Go over to a version of a knowledge base, and to the model with its statistics."""
        self.model, self._knowledge_base = model, knowledge_base
