"""Named tensors of a record besides its tokens and pixels: a channel from your data to your unit."""

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
    """Makes named tensors of records, which reach the units as :attr:`Features.extra <mimic_pl.Features.extra>`.

    The processor holds them by name; a tensor ``ids`` of the features called ``lexical`` is ``lexical.ids`` in the
    batch and in ``Features.extra``. Each tensor has the same shape for every record but for the first dimension.
    """

    reads_text: bool = False
    """Whether the tensors are made of the text, and are zeros where a mention has lost its text."""

    entity_arrays: tuple[str, ...] = ()
    """Names of the arrays that it needs of entities: readers take them from the fields of this name."""

    mention_arrays: tuple[str, ...] = ()
    """Names of the arrays that it needs of mentions."""

    def fit(self, entities: Iterable[str]) -> Self:
        """Learn what depends on the whole knowledge base, such as document frequencies.

        Args:
            entities: The texts of all entities.

        Returns:
            Fitted features; these themselves if there is nothing to learn, the default.
        """
        return self

    @abstractmethod
    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors ``[mentions, ...]`` of mentions, given with the texts that the model reads."""

    @abstractmethod
    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors ``[entities, ...]`` of entities, given with the texts that the model reads."""

    def describe(self) -> str:
        """The settings, to tell whether an index was made with the same."""
        return type(self).__name__


class RecordArrays(RecordFeatures):
    """Hands arrays of the records to the units as they are: triples, detected objects, a type embedding.

    They are :attr:`Entity.arrays` and :attr:`Mention.arrays`; in the JSON files of a data set a field of this name
    holds the numbers, as a list or a list of lists.

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
        """Which arrays."""
        return f"RecordArrays(entity={self.entity!r}, mention={self.mention!r})"


def _stacked(records: Sequence[Entity] | Sequence[Mention], name: str) -> Tensor:
    arrays: list[Any] = []
    for record in records:
        if name not in record.arrays:
            raise DataError(
                f"The record {record.id!r} has no array {name!r} (it has {sorted(record.arrays) or 'none'}), and the "
                "processor's RecordArrays asks for it. Give every record one."
            )
        arrays.append(np.asarray(record.arrays[name]))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(
                f"The array {name!r} of the record {record.id!r} has shape {list(arrays[-1].shape)}, and that of "
                f"{records[0].id!r} {list(arrays[0].shape)}. Pad them to one shape."
            )
    stacked = np.stack(arrays)
    return torch.from_numpy(stacked.astype(np.float32) if stacked.dtype.kind == "f" else stacked)
