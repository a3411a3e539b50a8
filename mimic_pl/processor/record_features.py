"""Named tensors of a record in addition to its tokens and pixels, for custom units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.template import TextTemplate
from mimic_pl.records import Entity, Mention

Statistics = Mapping[str, npt.NDArray[Any]]
"""What was learned from a whole knowledge base, as named arrays, for storage next to it."""


class RecordFeatures(Recorded, ABC):
    """Computes named tensors of records, which reach the units as :attr:`Features.extra <mimic_pl.Features.extra>`.

    The processor stores them by name; the tensor ``ids`` of the features named ``lexical`` is ``lexical.ids`` in the
    batch and in ``Features.extra``. Except for the first dimension, a tensor has the same shape for all records.
    """

    reads_text: bool = False
    """Whether the tensors are computed from text; if so, modality dropout sets them to zero."""

    mention_template: TextTemplate | None = None
    """Text of a mention that the tensors are computed from; by default the one that is passed to the model."""

    entity_template: TextTemplate | None = None
    """The same of an entity."""

    entity_arrays: tuple[str, ...] = ()
    """Names of the arrays required of entities; readers take them from the fields with these names."""

    mention_arrays: tuple[str, ...] = ()
    """Names of the arrays required of mentions."""

    def fit(self, entities: Iterable[str]) -> Self:
        """Fit to a whole knowledge base, for example to learn document frequencies.

        Args:
            entities: The texts of all entities.

        Returns:
            Fitted features; by default the object itself, as there is nothing to fit.
        """
        return self

    def statistics(self) -> Statistics:
        """What :meth:`fit` has learned, as named arrays; none by default, or before fitting.

        An entity's tensors may only depend on those of them that :meth:`updated` never changes: otherwise, each added
        entity would change the tensors of all others.
        """
        return {}

    def with_statistics(self, statistics: Statistics) -> Self:
        """These features, fitted to the knowledge base whose :meth:`statistics` these are.

        Raises:
            DataError: They are incomplete or damaged, or of other features.
        """
        if statistics:
            raise DataError(
                f"{type(self).__name__} has no statistics, but the knowledge base has {sorted(statistics)} for it. It "
                "was indexed with other features: use those, or index it again."
            )
        return self

    def updated(self, added: Iterable[str] = (), removed: Iterable[str] = ()) -> Self:
        """Follow a change of the knowledge base, given the texts of the entities that were added and removed.

        Tensors of entities stay the same. The result does not depend on the history, but only on the entities that
        remain and on the last :meth:`fit`.
        """
        return self

    def recounted(self, entities: Iterable[str]) -> Self:
        """What :meth:`updated` would have led to, given the texts of all entities that remain.

        Raises:
            ConfigError: The features have statistics, but cannot count them again.
        """
        if self.statistics():
            raise ConfigError(
                f"{type(self).__name__} cannot count its statistics again. Override recounted(), or index the "
                "knowledge base again."
            )
        return self

    max_drift: ClassVar[float] = 0.0
    """Largest :attr:`drift` at which the knowledge base need not be indexed again."""

    @property
    def drift(self) -> float:
        """How far the knowledge base has moved from what its entities' tensors were computed with; 0 for not at all."""
        return 0.0

    def save_config(self, folder: Path) -> None:
        """Write the files that :meth:`config_arguments` names, for a model that is saved; none by default.

        Args:
            folder: An existing, empty folder.

        Raises:
            ConfigError: A file that the features were built from is needed for it and is no longer there.
        """

    @classmethod
    def config_arguments(cls, folder: Path) -> dict[str, Any]:
        """Arguments that replace those of the same names, to build the features from the files of :meth:`save_config`.

        Args:
            folder: The folder with the files.
        """
        return {}

    @abstractmethod
    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors ``[mentions, ...]`` of mentions, given their texts."""

    @abstractmethod
    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors ``[entities, ...]`` of entities, given their texts."""

    def describe(self) -> str:
        """The settings, to check whether an index was built with them."""
        return type(self).__name__


class RecordArrays(RecordFeatures):
    """Passes arrays of the records to the units unchanged: triples, detected objects, a type embedding.

    They come from :attr:`Entity.arrays` and :attr:`Mention.arrays`; in the JSON files of a data set, they are fields
    with a list of numbers, or nested lists.

    Args:
        entity: Name of the entities' array; none by default.
        mention: Name of the mentions' array; none by default.

    Example:
        >>> features = RecordArrays(entity="type_embedding")
        >>> features.entities([Entity("Q1", "Ada", arrays={"type_embedding": [0.5, 1.0]})], [""])
        {'values': tensor([[0.5000, 1.0000]])}
    """

    def __init__(self, entity: str | None = None, mention: str | None = None) -> None:
        self.entity = entity
        self.mention = mention
        self.entity_arrays = () if entity is None else (entity,)
        self.mention_arrays = () if mention is None else (mention,)

    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """``values`` ``[mentions, ...]``, or nothing."""
        return {} if self.mention is None else {"values": _stacked(records, self.mention)}

    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """``values`` ``[entities, ...]``, or nothing."""
        return {} if self.entity is None else {"values": _stacked(records, self.entity)}

    def describe(self) -> str:
        """The names of the arrays."""
        return f"RecordArrays(entity={self.entity!r}, mention={self.mention!r})"


def _stacked(records: Sequence[Entity] | Sequence[Mention], name: str) -> Tensor:
    arrays: list[Any] = []
    for record in records:
        if name not in record.arrays:
            raise DataError(
                f"The record {record.id!r} has no array {name!r} (it has {sorted(record.arrays) or 'none'}), which the "
                "processor's RecordArrays requires. Add it to every record."
            )
        arrays.append(np.asarray(record.arrays[name]))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(
                f"The array {name!r} of the record {record.id!r} has shape {list(arrays[-1].shape)}, but that of "
                f"{records[0].id!r} {list(arrays[0].shape)}. Pad them to one shape."
            )
    stacked = np.stack(arrays)
    return torch.from_numpy(stacked.astype(np.float32) if stacked.dtype.kind == "f" else stacked)
