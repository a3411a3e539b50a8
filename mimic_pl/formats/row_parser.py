"""Base of the layouts: how the rows of a file become records."""

from __future__ import annotations

import difflib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mimic_pl.errors import DataError
from mimic_pl.formats.field_values import as_list, kind_of, obvious_text, valid_unicode
from mimic_pl.formats.record_error import FieldError, RecordError
from mimic_pl.quoting import listed, quoted
from mimic_pl.records import Entity, ImageSource, Mention

_log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed", Entity, Mention)

NIL = "nil"
"""Gold of a mention whose entity is not in any knowledge base."""

IMAGE_URL = "image_url"
"""Field of a record for images that are URLs."""


class ImageFiles(Protocol):
    """What an image in a file means: the image, or ``None`` for a URL, which is not fetched."""

    def __call__(self, image: object, key: str) -> ImageSource | None:
        """Return the image.

        Raises:
            FieldError: It cannot be used.
        """


class RowParser(ABC, Generic[Parsed]):
    """Turns rows (dictionaries, as a file has them) into records, and counts what it changed on the way.

    Args:
        path: The file, for messages.
        image_files: What the images of a row mean.
        arrays: Fields with (nested) lists of numbers, which become the records' arrays.
        texts: Fields that are needed as text: in these, any other value is an error.
    """

    key: ClassVar[str] = "id"
    """Field that holds the id, in which the keys of an object of records are stored."""

    shown: ClassVar[str] = "id"
    """Field by which a malformed row is named in messages."""

    about: ClassVar[str]
    """The keys by which a row is recognised, for messages."""

    def __init__(
        self, path: Path | str, image_files: ImageFiles, arrays: Sequence[str] = (), texts: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.image_files = image_files
        self.arrays, self.texts = arrays, texts
        self.unit, self.number = "record", 0  # place of the current row
        self._notes: dict[str, tuple[str, int]] = {}  # what was done: to which row first, to how many

    @classmethod
    @abstractmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""

    @abstractmethod
    def parse(self, row: dict[str, Any], ordinal: int) -> Iterable[Parsed]:
        """The records of a row.

        Args:
            row: The row.
            ordinal: Its position in the file.

        Raises:
            FieldError: It is malformed.
        """

    def records(self, rows: Iterable[tuple[str, int, Any]]) -> Iterator[Parsed | RecordError]:
        """Every record of a file; in place of a malformed one, its error."""
        for ordinal, (self.unit, self.number, row) in enumerate(rows):
            try:
                if not isinstance(row, dict):
                    raise self._no_record(row)
                yield from self.parse(row, ordinal)
            except FieldError as error:
                own_id = row.get(self.shown) if isinstance(row, dict) else None
                yield RecordError(self.path, self.unit, self.number, own_id, error)
        for what, (first, count) in self._notes.items():
            _log.warning(f"{self.path}: {what} (records: {count:,}; the first is {first}).")

    def note(self, what: str) -> None:
        """Count what was done to the current row; reported once, after the last one."""
        first, count = self._notes.get(what, (f"{self.unit} {self.number}", 0))
        self._notes[what] = first, count + 1

    def id(self, row: Mapping[str, Any], ordinal: int, key: str = "id") -> int | str:
        """A row's id; its number in the file if it has none."""
        value = row.get(key)
        if value is None or value == "":
            return ordinal
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise FieldError(f"{key!r} is {quoted(value)}; expected an integer or text.", key)
        return valid_unicode(value, key) if isinstance(value, str) else value

    def text(self, row: Mapping[str, Any], key: str) -> str:
        """A required text."""
        if key not in row:
            close = [name for name in row if key in name or (name and name in key)]
            close = close or difflib.get_close_matches(key, row, n=1)
            meant = f" If that is {quoted(close[0])}, rename it." if close else ""
            raise FieldError(f"there is no {key!r}.{meant} The record has: {listed(sorted(row))}.", f"no {key}")
        return self.as_text(row[key], key)

    def identifier(self, row: Mapping[str, Any], key: str) -> str:
        """A required id as text; not a float, since 7 and 7.0 would be different ids."""
        value = row.get(key)
        if isinstance(value, float | list):
            raise FieldError(f"{key!r} is {kind_of(value)}, {quoted(value)}; expected text or an integer.", f"{key} id")
        return self.text(row, key)

    def entity_id(self, row: Mapping[str, Any], key: str) -> str:
        """The id of an entity, which is not empty."""
        found = self.identifier(row, key)
        if not found.strip():
            raise FieldError(f"{key!r} is empty. Give each entity an id of its own.", f"empty {key}")
        return found

    def as_text(self, value: object, key: str) -> str:
        """The text of a value, if it obviously has one."""
        if isinstance(value, str):
            return valid_unicode(value, key)
        text, kind = obvious_text(value), kind_of(value)
        if text is None:
            absent = kind in ("NaN", "null")
            found = kind if absent else f"{kind}, {quoted(value)}"
            advice = "Write an empty text where there is none." if absent else "Write it as text."
            raise FieldError(f"{key!r} is not text: it is {found}. {advice}", f"{key} {kind}")
        self.note(f"{kind} as {key!r} is taken as text")
        return valid_unicode(text, key)

    def array(self, row: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
        """A list of numbers: float32 if any of them is a float, int64 otherwise."""
        value = as_list(row.get(key))
        try:
            array = np.array(value)
        except (ValueError, OverflowError) as error:
            raise FieldError(f"{key!r} is {quoted(value)}; its rows have different lengths.", key) from error
        if array.dtype.kind not in "if" or not np.isfinite(array).all():
            raise FieldError(f"{key!r} is {quoted(value)}; expected a list of finite numbers.", key)
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)

    def golds(self, value: object, key: str) -> tuple[str, ...]:
        """Ids of golds: one, or a list of them; ``nil`` and empty texts are none."""
        value = as_list(value)
        golds = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(gold, str | int) and not isinstance(gold, bool) for gold in golds):
            raise FieldError(f"{key!r} is {quoted(value)}; expected an id, a list of ids, or {NIL!r}.", key)
        return tuple(dict.fromkeys(str(gold) for gold in golds if gold != "" and str(gold).lower() != NIL))

    def images(self, images: Iterable[object], key: str, fields: dict[str, str]) -> tuple[ImageSource, ...]:
        """The images of a row; those that are URLs are kept in the field ``image_url``."""
        found, urls = [], []
        for image in images:
            if image is None or image == "":
                continue
            file = self.image_files(image, key)
            if file is None:
                urls.append(str(image))
            else:
                found.append(file)
        if urls:
            fields.setdefault(IMAGE_URL, " ".join(urls))
            self.note(f"images are URLs, which are not fetched but kept as the field {IMAGE_URL!r}")
        return tuple(found)

    def _no_record(self, row: object) -> FieldError:
        if isinstance(row, FieldError):
            return row
        if isinstance(row, DataError):
            return FieldError(str(row))
        if isinstance(row, list) and len(row) > 3 and isinstance(row[0], str) and isinstance(row[1], str):
            raise DataError(
                f"{self.path} is WikiDiverse as its authors annotated it: lists of sentence, image URL, topic and "
                "mentions with Wikipedia URLs, without a knowledge base. mimic-pl reads the cleaned archive with its "
                "knowledge base, which the readme of github.com/pengfei-luo/MIMIC links; or write one record per "
                'mention: {"id": "7-0", "sentence": ..., "mentions": "Lions", "answer": ID, "imgPath": FILE}.'
            )
        return FieldError(f"{quoted(row)} is not an object with fields. Fix or remove it.", "no object")
