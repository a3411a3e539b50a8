"""Named tensors of a record in addition to its tokens and pixels, for custom units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from mimic_pl.construction import Recorded
from mimic_pl.errors import DataError
from mimic_pl.records import Entity, Mention


class RecordFeatures(Recorded, ABC):
    """Computes named tensors of records, which reach the units as :attr:`Features.extra <mimic_pl.Features.extra>`.

    The processor stores them by name; the tensor ``ids`` of the features named ``lexical`` is ``lexical.ids`` in the
    batch and in ``Features.extra``. Except for the first dimension, a tensor has the same shape for all records.
    """

    reads_text: bool = False
    """Whether the tensors are computed from text; if so, modality dropout sets them to zero."""

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

    @abstractmethod
    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors ``[mentions, ...]`` of mentions, given their texts as passed to the model."""

    @abstractmethod
    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors ``[entities, ...]`` of entities, given their texts as passed to the model."""

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
