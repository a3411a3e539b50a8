"""The published on-disk layout -> records."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from mimic_pl.data.json_file import read_json, stream_json
from mimic_pl.data.table import EntityTable
from mimic_pl.errors import DataError
from mimic_pl.records import Entity, Mention

NIL = "nil"
"""The answer of a mention whose entity is in no knowledge base."""

_SHOWN = 5
_Record = TypeVar("_Record")
_Problem = tuple[int, str]  # number of the record, and what is wrong with it


class MalformedRecordsError(DataError):
    """Some records of a file are not as they should be; all of them are told at once.

    Args:
        path: The file.
        problems: One sentence a problem, each with the record it is about.
        records: The records that could be read all the same, for those who want to go on looking.
    """

    def __init__(self, path: Path, problems: list[str], records: Sequence[Any]) -> None:
        more = f"\n... and {len(problems) - _SHOWN} more problems." if len(problems) > _SHOWN else ""
        super().__init__("\n".join(f"{path}, {problem}" for problem in problems[:_SHOWN]) + more)
        self.problems = problems
        self.records = records


def read_entities(path: Path, ids: Path | None = None, arrays: Sequence[str] = ()) -> EntityTable:
    """Read ``kb_entity.json``, in the order of its ``id`` as the published code does.

    Records are decoded and stored one by one, so that a large file needs little more memory than its table.

    Args:
        path: The file.
        ids: ``qid2id.json``, whose ids must be those of the knowledge base.
        arrays: Fields of the records that hold lists of numbers, nested or not: they become the entities' arrays.

    Raises:
        DataError: A file is missing, empty or malformed, two entities share a ``qid``, or the files disagree.
    """
    problems: list[_Problem] = []
    numbers = array("q")
    own_ids: list[int | str] = []

    def stored() -> Iterator[Entity]:
        for number, (id_, entity) in _records(path, "entities", partial(_entity, arrays=arrays), problems):
            numbers.append(number)
            own_ids.append(id_)
            yield entity

    table = EntityTable(stored())
    repeated = table.positions.repeated()
    for later, first in repeated:
        where = _where(numbers[later], {"id": own_ids[later]})
        same = f"the entity {table[later].id!r} is record {numbers[first]} too. Keep one of them."
        problems.append((numbers[later], f"{where}: {same}"))
    told = [problem for _, problem in sorted(problems, key=itemgetter(0))]
    dropped = {later for later, _ in repeated}
    order = [position for position in range(len(table)) if position not in dropped]
    try:
        order.sort(key=own_ids.__getitem__)
    except TypeError:
        told.append("'id': some are numbers and some are texts, which have no order. Use one type.")
    if order != list(range(len(table))):
        table = table.take(order)
    if ids is not None and ids.is_file():
        try:
            told += _disagreements(ids, table, [own_ids[position] for position in order])
        except DataError as error:  # the knowledge base itself can still be read
            told.append(f"with its list of ids: {error}")
    if told:
        raise MalformedRecordsError(path, told, table)
    if not table:
        raise DataError(f"{path} holds no entities. A knowledge base needs at least one.")
    return table


def read_mentions(path: Path, arrays: Sequence[str] = ()) -> list[Mention]:
    """Read a split's file.

    Args:
        path: The file.
        arrays: Fields of the records that hold lists of numbers, nested or not: they become the mentions' arrays.

    Raises:
        DataError: The file is missing or malformed.
    """
    problems: list[_Problem] = []
    mentions = [mention for _, mention in _records(path, path.name, partial(_mention, arrays=arrays), problems)]
    if problems:
        raise MalformedRecordsError(path, [problem for _, problem in problems], mentions)
    return mentions


def _records(
    path: Path, name: str, parse: Callable[[dict[str, Any], int], _Record], problems: list[_Problem]
) -> Iterator[tuple[int, _Record]]:
    """Number and parsed form of every record that parses; the problems of the others are collected."""
    for number, row in enumerate(stream_json(path, f"Reading {name}")):
        if not isinstance(row, dict):
            problem = f"record {number}: {row!r:.80} is no object with named fields. Mend or remove it."
            problems.append((number, problem))
            continue
        try:
            record = parse(row, number)
        except DataError as error:
            problems.append((number, str(error)))
        else:
            yield number, record


def _entity(row: dict[str, Any], number: int, arrays: Sequence[str]) -> tuple[int | str, Entity]:
    where = _where(number, row)
    images = row.get("image_list")
    if images is None or isinstance(images, str):
        images = [images]
    if not isinstance(images, list):
        raise DataError(f"{where}: 'image_list' is {images!r:.80}; expected a list of file names.")
    entity = Entity(
        id=_text(row, "qid", where),
        name=unquote(_text(row, "entity_name", where)),
        fields=_text_fields(row, where, without=("id", "qid", "entity_name", "image_list")),
        images=tuple(_inside(name, where) for name in images if name not in (None, "")),
        arrays={name: _array(row, name, where) for name in arrays},
    )
    return _id(row, number, where), entity


def _mention(row: dict[str, Any], number: int, arrays: Sequence[str]) -> Mention:
    where = _where(number, row)
    answer = row.get("answer")
    answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
    if not all(isinstance(gold, str) for gold in answers):
        raise DataError(f"{where}: 'answer' is {answer!r:.80}; expected a qid, a list of qids, or 'nil'.")
    image = row.get("imgPath")
    return Mention(
        id=str(_id(row, number, where)),
        mention=unquote(_text(row, "mentions", where)),
        sentence=_text(row, "sentence", where),
        golds=tuple(dict.fromkeys(gold for gold in answers if gold and gold.lower() != NIL)),
        image=None if image in (None, "") else _inside(image, where),
        fields=_text_fields(row, where, without=("id", "mentions", "sentence", "answer", "imgPath")),
        arrays={name: _array(row, name, where) for name in arrays},
    )


def _disagreements(path: Path, table: EntityTable, ids: list[int | str]) -> Iterator[str]:
    """What ``qid2id.json`` and the knowledge base, whose ids are in the order of its table, say differently."""
    listed = read_json(path)
    if not isinstance(listed, dict):
        raise DataError(f"{path} holds a JSON {type(listed).__name__} where an object of qids and ids is due.")
    mend = f"Unpack both files of one release, or remove {path.name}: it is made from the other."
    for qid, here in zip(table.positions, ids, strict=True):
        there = listed.pop(qid, None)
        if here != there:
            yield f"entity {qid!r}: its id is {_known(here)}, and in {path} it is {_known(there)}. {mend}"
    for qid, there in listed.items():
        if there is not None:
            yield f"entity {qid!r}: its id is {_known(None)}, and in {path} it is {_known(there)}. {mend}"


def _known(id_: object) -> str:
    return "not there" if id_ is None else repr(id_)


def _where(number: int, row: dict[str, Any]) -> str:
    return f"record {number} (id {row.get('id')!r:.40})"


def _id(row: dict[str, Any], number: int, where: str) -> int | str:
    """A record's id; its number if it has none."""
    value = row.get("id")
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: 'id' is {value!r:.80}; expected a number without a point, or a text.")
    return _unicode(value, "id", where) if isinstance(value, str) else value


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        have = ", ".join(sorted(row))
        raise DataError(f"{where}: {key!r} is {value!r:.80}; expected a text. The record has: {have}.")
    return _unicode(value, key, where)


def _text_fields(row: dict[str, Any], where: str, without: tuple[str, ...]) -> dict[str, str]:
    """Every other text field, for the template; a missing value is an empty text."""
    return {
        _unicode(key, "the name of a field", where): _unicode(value or "", key, where)
        for key, value in row.items()
        if key not in without and (value is None or isinstance(value, str))
    }


def _array(row: dict[str, Any], key: str, where: str) -> npt.NDArray[Any]:
    """A list of numbers: float32 if any of them has a point, int64 otherwise."""
    try:
        array = np.array(row.get(key))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {key!r} is {row[key]!r:.80}; its rows have different lengths.") from error
    if array.dtype.kind not in "if" or not np.isfinite(array).all():
        raise DataError(f"{where}: {key!r} is {row.get(key)!r:.80}; expected a list of finite numbers.")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _unicode(value: str, key: str, where: str) -> str:
    """The text itself; half a surrogate pair, which JSON can spell, is no text and no tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {key!r} has half of a surrogate pair at {error.start}. Mend the text.") from error
    return value


def _inside(name: object, where: str) -> str:
    """An image's name, which must stay inside its folder."""
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"{where}: the image {name!r:.80} is no file name.")
    path = PurePosixPath(_unicode(name, "image", where).replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise DataError(f"{where}: the image {name!r} lies outside of the data folder. Use names inside of it.")
    return name
