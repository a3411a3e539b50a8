"""Compact storage of a knowledge base: a few arrays instead of one object per entity."""

from __future__ import annotations

import copy
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from operator import index as as_index
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mimic_pl.errors import DataError
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity

Integers = npt.NDArray[Any]
"""A one-dimensional array of the smallest unsigned integers that hold its values."""

# Unpaired surrogates, which a custom reader may let through, are preserved.
_UNICODE = ("utf-8", "surrogatepass")


class EntityTable(Sequence[Entity]):
    """A knowledge base that creates an :class:`Entity` only on access.

    All texts are concatenated in one array of UTF-8 bytes: an entity's ``id``, its name, its fields and its images,
    then those of the next entity. Further arrays store where each text ends, where each entity begins, and which fields
    it has (most entities have the same). So a million entities are a handful of objects: they take little memory,
    pickle at the speed of a copy, and stay in memory shared with loader processes, which the reference counts of a
    million objects would copy.

    A slice is again a table and shares the arrays. A table equals any sequence of equal entities.

    Args:
        entities: Entities in the order of their positions; they are stored one by one and not kept.

    Raises:
        DataError: A part of an entity is not text.

    Example:
        >>> table = EntityTable([Entity("Q42", "Douglas Adams", {"attr": "Sex: male."}, ("Q42_0.jpg",))])
        >>> table[0].name, table.positions["Q42"], "Q23" in table.positions
        ('Douglas Adams', 0, False)
    """

    def __init__(self, entities: Iterable[Entity] = ()) -> None:
        blob, ends, begins, counts, schemas = bytearray(), array("q", [0]), array("q"), array("q"), array("q")
        known: dict[tuple[str, ...], int] = {}
        arrays: dict[str, list[npt.NDArray[Any]]] = {}
        for entity in entities:
            texts = (entity.id, entity.name, *entity.fields.values(), *entity.image_files)
            for name in arrays.keys() | entity.arrays.keys():
                if name not in entity.arrays or (begins and name not in arrays):
                    raise DataError(
                        f"The entity {quoted(entity.id)}, or one before it, has no array {name!r}. All entities need "
                        "it."
                    )
                arrays.setdefault(name, []).append(np.asarray(entity.arrays[name]))
            begins.append(len(ends) - 1)
            counts.append(len(texts))
            schemas.append(known.setdefault(tuple(entity.fields), len(known)))
            for text in texts:
                try:
                    blob += text.encode(*_UNICODE)
                except AttributeError as error:
                    raise DataError(
                        f"The entity {quoted(entity.id)} has {quoted(text)} among its texts. id, name, fields and "
                        "images must be text: fix the reader that created it."
                    ) from error
                ends.append(len(blob))
        self._blob = np.frombuffer(blob, np.uint8)
        self._ends = _compact(ends)
        self._begins = _compact(begins)
        self._counts = _compact(counts)
        self._schemas = _compact(schemas)
        self._fields = list(known)
        self._arrays = {name: _stacked(name, own) for name, own in arrays.items()}
        self._rows = np.arange(len(self._begins) if arrays else 0)

    def __len__(self) -> int:
        """Number of entities."""
        return len(self._begins)

    @overload
    def __getitem__(self, position: int) -> Entity: ...

    @overload
    def __getitem__(self, position: slice) -> EntityTable: ...

    def __getitem__(self, position: int | slice) -> Entity | EntityTable:
        """The entity at a position, or a table of those in a slice."""
        if isinstance(position, slice):
            return self._of(position)
        begin = int(self._begins[as_index(position)])
        ends = self._ends[begin : begin + int(self._counts[position]) + 1].tolist()
        start = ends[0]
        raw = self._blob[start : ends[-1]].tobytes()
        texts = [raw[left - start : right - start].decode(*_UNICODE) for left, right in pairwise(ends)]
        fields = self._fields[self._schemas[position]]
        arrays = {name: rows[self._rows[position]] for name, rows in self._arrays.items()}
        images = tuple(texts[2 + len(fields) :])
        return Entity(texts[0], texts[1], dict(zip(fields, texts[2:], strict=False)), images, arrays)

    def take(self, positions: Sequence[int]) -> EntityTable:
        """The entities at these positions, in their order; the texts are shared, not copied."""
        return self._of(np.asarray(positions, dtype=np.int64))

    def without_images(self) -> EntityTable:
        """The same entities without images; the texts are shared, not copied."""
        table = copy.copy(self)
        table._counts = np.array([2 + len(fields) for fields in self._fields], np.int64)[self._schemas]
        return table

    def _of(self, chosen: slice | Integers) -> EntityTable:
        table = copy.copy(self)
        table.__dict__.pop("positions", None)
        for name in ("_begins", "_counts", "_schemas", *(("_rows",) if self._arrays else ())):
            setattr(table, name, getattr(self, name)[chosen])
        return table

    def __eq__(self, other: object) -> bool:
        """Whether the other is a sequence of equal entities."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # unhashable, like a list

    def __repr__(self) -> str:
        """Number of entities and bytes."""
        return f"EntityTable({len(self):,} entities, {self.nbytes:,} bytes)"

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes, without :attr:`positions`."""
        texts = (self._blob, self._ends, self._begins, self._counts, self._schemas)
        return sum(array.nbytes for array in (*texts, *self._arrays.values()))

    @cached_property
    def positions(self) -> Positions:
        """Position of each ``id``; created on first access."""
        return Positions(self._blob, self._ends[self._begins], self._ends[1:][self._begins])


def _stacked(name: str, arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(f"The entities' arrays {name!r} have the shapes {sorted(shapes)}. Pad them to one shape.")
    return np.stack(arrays)


class Positions(Mapping[str, int]):
    """A compact, read-only mapping from ``id`` to position in a knowledge base.

    The entities are sorted by a checksum of their ``id``; a lookup finds the checksum and compares the bytes. Of equal
    ids, the last one is found, as in a dictionary.

    Args:
        blob: UTF-8 bytes of all texts.
        starts: Start of each ``id`` in ``blob``, ``[entities]``.
        stops: End of each ``id`` in ``blob``, ``[entities]``.
    """

    def __init__(self, blob: npt.NDArray[np.uint8], starts: Integers, stops: Integers) -> None:
        self._blob, self._starts, self._stops = blob, starts, stops
        view = blob.data
        spans = zip(starts.data, stops.data, strict=True)  # no list of all numbers
        sums = np.fromiter((zlib.crc32(view[start:stop]) for start, stop in spans), np.uint32, len(starts))
        order = np.argsort(sums, kind="stable")
        self._sums = sums[order]
        self._order = order.astype(np.min_scalar_type(len(order)))

    def __len__(self) -> int:
        """Number of entities."""
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        """Every ``id``, in the order of the knowledge base."""
        return map(self._id, range(len(self)))

    def __getitem__(self, entity_id: str) -> int:
        """The position of an entity.

        Raises:
            KeyError: It is not in the knowledge base.
        """
        if isinstance(entity_id, str):
            raw = entity_id.encode(*_UNICODE)
            checksum = np.uint32(zlib.crc32(raw))
            slot = int(np.searchsorted(self._sums, checksum, side="right"))
            while slot and self._sums[slot - 1] == checksum:
                slot -= 1
                position = int(self._order[slot])
                if self._blob[self._starts[position] : self._stops[position]].tobytes() == raw:
                    return position
        raise KeyError(entity_id)

    def repeated(self) -> list[tuple[int, int]]:
        """Positions with an ``id`` that also occurs earlier, each with its first position, in order."""
        same = np.flatnonzero(self._sums[1:] == self._sums[:-1])
        suspects = np.sort(self._order[np.union1d(same, same + 1)]).tolist()
        first: dict[str, int] = {}
        pairs = [(position, first.setdefault(self._id(position), position)) for position in suspects]
        return [(position, earlier) for position, earlier in pairs if earlier != position]

    def _id(self, position: int) -> str:
        return self._blob[self._starts[position] : self._stops[position]].tobytes().decode(*_UNICODE)


def as_table(entities: Sequence[Entity]) -> EntityTable:
    """Convert entities to a table, unless they are one."""
    return entities if isinstance(entities, EntityTable) else EntityTable(entities)


def _compact(values: array[int]) -> Integers:
    """Non-negative integers in the smallest sufficient type."""
    wide = np.frombuffer(values, np.int64)
    return wide.astype(np.min_scalar_type(int(wide.max(initial=0))))
