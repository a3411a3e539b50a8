"""Entities as users give them: records in memory or a file, read again and again one by one."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mimic_pl.errors import DataError
from mimic_pl.files import write_error
from mimic_pl.formats import RecordError, read_entities
from mimic_pl.home import expanded
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, as_sequence

T = TypeVar("T")


class EntityRecords:
    """Entities of a list or a file, which is read anew in each iteration.

    Args:
        source: Entities, dictionaries (see :meth:`Entity.of`), or a file in any of the :mod:`~mimic_pl.formats`. Those
            of an iterator are kept in a temporary file.
        format: Layout of the file; recognised by default.
        image_folder: Folder that relative paths of images begin in: by default the file's own, and the working
            directory for records.
    """

    def __init__(
        self,
        source: Iterable[Entity | Mapping[str, Any]] | str | Path,
        format: str | None = None,
        image_folder: str | Path | None = None,
    ) -> None:
        self.path = expanded(source) if isinstance(source, (str, Path)) else None
        self._records: Iterable[Entity | Mapping[str, Any]] = ()
        if isinstance(source, Iterator):
            self._records = SpooledRecords(source)
        elif not isinstance(source, (str, Path)):
            self._records = as_sequence(source)
        self._format = format
        self._folder = None if image_folder is None else expanded(image_folder)

    def __iter__(self) -> Iterator[Entity]:
        """Every entity.

        Raises:
            DataError: A record is malformed, or the file cannot be read.
        """
        if self.path is None:
            yield from map(self._located, map(Entity.of, self._records))
            return
        for entity in read_entities(self.path, self._format, image_folder=self._folder):
            if isinstance(entity, RecordError):
                raise entity
            yield entity

    def count(self, show_progress_bar: bool = False) -> int:
        """Number of entities; reads every record, so that a malformed one is found before hours of encoding."""
        return sum(1 for _ in tqdm(self, "Reading", unit=" entities", leave=False, disable=not show_progress_bar))

    def id_hashes(self, show_progress_bar: bool = False) -> NDArray[np.int64]:
        """Hashes of all ids, in their order, of use in this process only; reads every record, as :meth:`count` does.

        Raises:
            DataError: A record is malformed, or two entities share an id.
        """
        bar = tqdm(self, "Reading", unit=" entities", leave=False, disable=not show_progress_bar)
        hashes = np.fromiter((hash(entity.id) for entity in bar), np.int64)
        ascending = np.sort(hashes)
        equal = {*ascending[1:][ascending[1:] == ascending[:-1]].tolist()}
        seen: set[str] = set()
        for entity in self if equal else ():
            if entity.id in seen:
                raise DataError(f"An entity is given twice: {quoted(entity.id)}. Give each one once.")
            if hash(entity.id) in equal:
                seen.add(entity.id)
        return hashes

    def _located(self, entity: Entity) -> Entity:
        def path(image: Any) -> Any:
            if not isinstance(image, (str, Path)):
                return image
            return str(image if self._folder is None else self._folder / image)

        return replace(entity, images=tuple(map(path, entity.images)))


class SpooledRecords:
    """The records of an iterator, which may be millions, in a temporary file, to be read again and again.

    Args:
        records: The iterator.

    Raises:
        DataError: A record is malformed.
        StoreError: The disk is full.
    """

    def __init__(self, records: Iterator[Entity | Mapping[str, Any]]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed and removed with this object
        for record in records:
            entity = Entity.of(record)
            try:
                pickle.dump(entity, self._file)
            except OSError as error:
                raise write_error(error, Path(tempfile.gettempdir()) / "entities", self._file.tell()) from error
        self._end = self._file.tell()

    def __iter__(self) -> Iterator[Entity]:
        """Every entity."""
        position = 0
        while position < self._end:
            self._file.seek(position)  # other iterations may have moved it
            entity: Entity = pickle.load(self._file)
            position = self._file.tell()
            yield entity


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size`` items, in order."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
