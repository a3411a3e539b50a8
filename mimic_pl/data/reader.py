"""Reads files with the fields of the published layout into records."""

from __future__ import annotations

import difflib
import logging
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from mimic_pl.data.field_values import as_list, is_inside, kind_of, obvious_text, valid_unicode
from mimic_pl.data.malformed_records import FieldError, MalformedRecordsError, Problem, Problems
from mimic_pl.data.table import EntityTable
from mimic_pl.errors import DataError
from mimic_pl.formats import read_records
from mimic_pl.formats.json_records import read_json
from mimic_pl.quoting import listed, quoted
from mimic_pl.records import Entity, Mention

NIL = "nil"
"""The answer of a mention whose entity is not in any knowledge base."""

_log = logging.getLogger(__name__)
_Record = TypeVar("_Record", Entity, Mention)


def read_entities(
    path: Path,
    ids: Path | None = None,
    arrays: Sequence[str] = (),
    texts: Sequence[str] = (),
    images: Path | None = None,
) -> EntityTable:
    """Read a knowledge base, ordered by ``id`` as in the published code.

    Records are decoded and stored one by one, so that a large file needs little more memory than its table.

    Args:
        path: The file, in any of the :mod:`~mimic_pl.formats`.
        ids: ``qid2id.json``, whose ids must match the knowledge base.
        arrays: Fields with (nested) lists of numbers, which become the entities' arrays.
        texts: Fields that are needed as text: in these, any other value is an error; other fields that are not text are
            ignored.
        images: Folder inside which absolute paths of images are accepted.

    Raises:
        DataError: A file is missing, empty or malformed, two entities share a ``qid``, or the files disagree.
    """
    reader = _EntityReader(path, "entities", "qid", arrays, texts, images)
    table = EntityTable(reader.read())
    own_ids, problems = reader.ids, reader.problems
    repeated = table.positions.repeated()
    for later, first in repeated:
        same = f"the entity {quoted(table[later].id)} is also {reader.unit} {reader.numbers[first]}. Keep one of them."
        # Counted separately: each is a different entity.
        problems.add(reader.numbers[later], reader.where(reader.numbers[later], own_ids[later]), same, kind=str(later))
    found = problems.found()
    dropped = {later for later, _ in repeated}
    order = [position for position in range(len(table)) if position not in dropped]
    try:
        order.sort(key=own_ids.__getitem__)
    except TypeError:
        found.append(Problem("'id'", "some are numbers and some are text, which cannot be ordered. Use one type."))
    if order != list(range(len(table))):
        table = table.take(order)
    if ids is not None and ids.is_file():
        try:
            found += _disagreements(ids, table, [own_ids[position] for position in order], complete=not found)
        except DataError as error:  # the knowledge base itself can still be read
            found.append(Problem("with its list of ids", str(error)))
    if found:
        raise MalformedRecordsError(path, found, table)
    if not table:
        raise DataError(f"{path} contains no entities. A knowledge base needs at least one.")
    return table


def read_mentions(
    path: Path, arrays: Sequence[str] = (), texts: Sequence[str] = (), images: Path | None = None
) -> list[Mention]:
    """Read a split's file.

    Args:
        path: The file, in any of the :mod:`~mimic_pl.formats`.
        arrays: Fields with (nested) lists of numbers, which become the mentions' arrays.
        texts: Fields that are needed as text; see :func:`read_entities`.
        images: Folder inside which absolute paths of images are accepted.

    Raises:
        DataError: The file is missing or malformed.
    """
    reader = _MentionReader(path, path.name, "id", arrays, texts, images)
    mentions = list(reader.read())
    if found := reader.problems.found():
        raise MalformedRecordsError(path, found, mentions)
    return mentions


class _Reader(ABC, Generic[_Record]):
    """Reads the records of one file, and collects what is wrong with them."""

    def __init__(
        self, path: Path, name: str, key: str, arrays: Sequence[str], texts: Sequence[str], images: Path | None
    ) -> None:
        self.path, self.name, self.key = path, name, key
        self.arrays, self.texts = arrays, texts
        self.images = images
        self.unit = "record"
        self.number = 0
        self.problems = Problems()
        self._taken: dict[str, tuple[str, int]] = {}  # what was taken as text: first in which record, how often

    def read(self) -> Iterator[_Record]:
        """Every valid record."""
        records = read_records(self.path, f"Reading {self.name}", self.key)
        for ordinal, (unit, number, row) in enumerate(records):
            self.unit, self.number = unit, number
            try:
                if not isinstance(row, dict):
                    raise self._no_record(row)
                record = self.parse(row, ordinal)
            except FieldError as error:
                where = self.where(self.number, row.get("id") if isinstance(row, dict) else None)
                self.problems.add(self.number, where, str(error), error.kind)
            else:
                yield record
        for what, (first, count) in self._taken.items():
            _log.warning(f"{self.path}: {what} is taken as text (records: {count:,}; the first is {first}).")

    @abstractmethod
    def parse(self, row: dict[str, Any], ordinal: int) -> _Record:
        """The record.

        Raises:
            FieldError: It is malformed.
        """

    def where(self, number: int, id_: object) -> str:
        """Place of a record in messages."""
        return f"{self.unit} {number}" + ("" if id_ is None else f" (id {quoted(id_)})")

    def id(self, row: dict[str, Any], ordinal: int) -> int | str:
        """A record's id; its number in the file if it has none."""
        value = row.get("id")
        if value is None or value == "":
            return ordinal
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise FieldError(f"'id' is {quoted(value)}; expected an integer or text.", "id")
        return valid_unicode(value, "id") if isinstance(value, str) else value

    def text(self, row: dict[str, Any], key: str) -> str:
        """A required text."""
        if key not in row:
            close = [name for name in row if key in name or (name and name in key)]
            close = close or difflib.get_close_matches(key, row, n=1)
            meant = f" If that is {quoted(close[0])}, rename it." if close else ""
            raise FieldError(f"there is no {key!r}.{meant} The record has: {listed(sorted(row))}.", f"no {key}")
        return self._as_text(row[key], key)

    def identifier(self, row: dict[str, Any], key: str) -> str:
        """A required id as text; not a float, since 7 and 7.0 would be different ids."""
        value = row.get(key)
        if isinstance(value, float | list):
            raise FieldError(f"{key!r} is {kind_of(value)}, {quoted(value)}; expected text or an integer.", f"{key} id")
        return self.text(row, key)

    def text_fields(self, row: dict[str, Any], without: tuple[str, ...]) -> dict[str, str]:
        """Every other text, for the template; null becomes empty text."""
        fields = {}
        for key, value in row.items():
            if key in without or key in self.arrays:
                continue
            if value is None:
                value = ""
            elif not isinstance(value, str):
                if key not in self.texts:
                    continue
                value = self._as_text(value, key)
            fields[valid_unicode(key, "the name of a field")] = valid_unicode(value, key)
        return fields

    def array(self, row: dict[str, Any], key: str) -> npt.NDArray[Any]:
        """A list of numbers: float32 if any of them is a float, int64 otherwise."""
        value = as_list(row.get(key))
        try:
            array = np.array(value)
        except (ValueError, OverflowError) as error:
            raise FieldError(f"{key!r} is {quoted(value)}; its rows have different lengths.", key) from error
        if array.dtype.kind not in "if" or not np.isfinite(array).all():
            raise FieldError(f"{key!r} is {quoted(value)}; expected a list of finite numbers.", key)
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)

    def image(self, name: object, key: str) -> str:
        """Check that an image's name stays inside its folder."""
        if not isinstance(name, str) or "\0" in name:
            raise FieldError(f"the image {quoted(name)} is not a file name.", "image name")
        if name.isascii() and not {"/", "\\", ":"} & set(name) and name != "..":
            return name  # nearly all names
        valid_unicode(name, "image")
        path = PurePosixPath(name.replace("\\", "/"))
        absolute = path.is_absolute() or bool(PureWindowsPath(name).drive)
        if ".." in path.parts or (absolute and not (self.images is not None and is_inside(name, self.images))):
            raise FieldError(
                f"the image {quoted(name)} is outside the data folder. Use names inside it, or name the folder of "
                f"absolute paths: --data.{key} FOLDER.",
                "image outside",
            )
        return name

    def _as_text(self, value: object, key: str) -> str:
        if isinstance(value, str):
            return valid_unicode(value, key)
        text, kind = obvious_text(value), kind_of(value)
        if text is None:
            absent = kind in ("NaN", "null")
            found = kind if absent else f"{kind}, {quoted(value)}"
            advice = "Write an empty text where there is none." if absent else "Write it as text."
            raise FieldError(f"{key!r} is not text: it is {found}. {advice}", f"{key} {kind}")
        what = f"{kind} as {key!r}"
        first, count = self._taken.get(what, (self.where(self.number, None), 0))
        self._taken[what] = first, count + 1
        return valid_unicode(text, key)

    def _no_record(self, row: object) -> FieldError:
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


class _EntityReader(_Reader[Entity]):
    """Reads entities, and keeps each one's number in the file and its id, which decides its position."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.numbers = array("q")
        self.ids: list[int | str] = []

    def parse(self, row: dict[str, Any], ordinal: int) -> Entity:
        """The entity."""
        images = row.get("image_list")
        if not isinstance(images, list):
            images = as_list(images)
        if images is None or isinstance(images, str):
            images = [images]
        if not isinstance(images, list):
            raise FieldError(f"'image_list' is {quoted(images)}; expected a list of file names.", "image_list")
        entity = Entity(
            id=self.identifier(row, "qid"),
            name=unquote(self.text(row, "entity_name")),
            fields=self.text_fields(row, without=("id", "qid", "entity_name", "image_list")),
            images=tuple(self.image(name, "entity_image_folder") for name in images if name is not None and name != ""),
            arrays={name: self.array(row, name) for name in self.arrays},
        )
        own_id = self.id(row, ordinal)
        # A cell of a CSV file is text.
        self.ids.append(int(own_id) if isinstance(own_id, str) and own_id.isdecimal() else own_id)
        self.numbers.append(self.number)
        return entity


class _MentionReader(_Reader[Mention]):
    """Reads mentions."""

    def parse(self, row: dict[str, Any], ordinal: int) -> Mention:
        """The mention."""
        answer = as_list(row.get("answer"))
        answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
        if not all(isinstance(gold, str | int) and not isinstance(gold, bool) for gold in answers):
            raise FieldError(f"'answer' is {quoted(answer)}; expected a qid, a list of qids, or 'nil'.", "answer")
        golds = (str(gold) for gold in answers)
        image = as_list(row.get("imgPath"))
        if isinstance(image, list) and len(image) < 2:
            image = image[0] if image else None
        return Mention(
            id=str(self.id(row, ordinal)),
            mention=unquote(self.text(row, "mentions")),
            sentence=self.text(row, "sentence"),
            golds=tuple(dict.fromkeys(gold for gold in golds if gold and gold.lower() != NIL)),
            image=None if image is None or image == "" else self.image(image, "mention_image_folder"),
            fields=self.text_fields(row, without=("id", "mentions", "sentence", "answer", "imgPath")),
            arrays={name: self.array(row, name) for name in self.arrays},
        )


def _disagreements(path: Path, table: EntityTable, ids: list[int | str], complete: bool) -> Iterator[Problem]:
    """Disagreements between ``qid2id.json`` and the knowledge base, whose ids are in the order of its table.

    Args:
        path: ``qid2id.json``.
        table: The knowledge base.
        ids: The ids of its records.
        complete: Whether all of its records are valid; otherwise some that the file lists may be missing.
    """
    known = read_json(path)
    if not isinstance(known, dict):
        raise DataError(f"{path} contains a JSON {type(known).__name__}; expected an object of qids and ids.")
    advice = f"Unpack both files from one release, or remove {path.name}: it is redundant."
    for qid, here in zip(table.positions, ids, strict=True):
        there = known.pop(qid, None)
        if here != there:
            differs = f"its id is {_known(here)}, but in {path} it is {_known(there)}. {advice}"
            yield Problem(f"entity {quoted(qid)}", differs)
    for qid, there in known.items() if complete else ():
        if there is not None:
            yield Problem(f"entity {quoted(qid)}", f"it is missing, but listed in {path}. {advice}")


def _known(id_: object) -> str:
    return "missing" if id_ is None else quoted(id_)
