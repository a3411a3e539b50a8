"""Reads files with the fields of the published layout into records."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from mimic_pl.data.malformed_records import MalformedRecordsError, Problem, Problems
from mimic_pl.data.table import EntityTable
from mimic_pl.errors import DataError
from mimic_pl.formats import read_records
from mimic_pl.formats.field_values import is_inside, valid_unicode
from mimic_pl.formats.json_records import read_json
from mimic_pl.formats.mimic_layout import MIMICEntities, MIMICMentions
from mimic_pl.formats.record_error import FieldError, RecordError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, Mention

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
    parser = MIMICEntities(path, _DataFolderImages(images), arrays, texts)
    problems = Problems()
    numbers, own_ids = array("q"), list[int | str]()

    def entities() -> Iterator[Entity]:
        for entity in _valid(parser, path, "entities", problems):
            numbers.append(parser.number)
            # A cell of a CSV file is text.
            own_id = parser.own_id
            own_ids.append(int(own_id) if isinstance(own_id, str) and own_id.isdecimal() else own_id)
            yield entity

    table = EntityTable(entities())
    repeated = table.positions.repeated()
    for later, first in repeated:
        same = f"the entity {quoted(table[later].id)} is also {parser.unit} {numbers[first]}. Keep one of them."
        place = f"{parser.unit} {numbers[later]} (id {quoted(own_ids[later])})"
        # Counted separately: each is a different entity.
        problems.add(numbers[later], place, same, kind=str(later))
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
    problems = Problems()
    parser = MIMICMentions(path, _DataFolderImages(images), arrays, texts)
    mentions = list(_valid(parser, path, path.name, problems))
    if found := problems.found():
        raise MalformedRecordsError(path, found, mentions)
    return mentions


def _valid(parser: RowParser[_Record], path: Path, name: str, problems: Problems) -> Iterator[_Record]:
    """Every valid record; the others are added to the problems."""
    for record in parser.records(read_records(path, f"Reading {name}", parser.key)):
        if isinstance(record, RecordError):
            problems.add(record.number, record.place, str(record.reason), record.kind)
        else:
            yield record


class _DataFolderImages:
    """Checks that an image's name stays inside its folder; the name itself is kept.

    Args:
        folder: Folder inside which absolute paths are accepted.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __call__(self, image: object, key: str) -> str:
        """The name of an image."""
        if not isinstance(image, str) or "\0" in image:
            raise FieldError(f"the image {quoted(image)} is not a file name.", "image name")
        if image.isascii() and not {"/", "\\", ":"} & set(image) and image != "..":
            return image  # nearly all names
        valid_unicode(image, "image")
        path = PurePosixPath(image.replace("\\", "/"))
        absolute = path.is_absolute() or bool(PureWindowsPath(image).drive)
        if ".." in path.parts or (absolute and not (self.folder is not None and is_inside(image, self.folder))):
            raise FieldError(
                f"the image {quoted(image)} is outside the data folder. Use names inside it, or name the folder of "
                f"absolute paths: --data.{key} FOLDER.",
                "image outside",
            )
        return image


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
