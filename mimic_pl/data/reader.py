"""Reads the JSON files of the published layout into records."""

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
"""The answer of a mention whose entity is not in any knowledge base."""

_SHOWN = 5
_Record = TypeVar("_Record")
_Problem = tuple[int, str]  # number of the record, and what is wrong with it


class MalformedRecordsError(DataError):
    """Some records of a file are malformed; all of them are reported at once.

    Args:
        path: The file.
        problems: One sentence per problem, naming the record.
        records: The valid records, for callers that continue, such as ``mimic-pl doctor``.
    """

    def __init__(self, path: Path, problems: list[str], records: Sequence[Any]) -> None:
        more = f"\n... and {len(problems) - _SHOWN} more problems." if len(problems) > _SHOWN else ""
        super().__init__("\n".join(f"{path}, {problem}" for problem in problems[:_SHOWN]) + more)
        self.problems = problems
        self.records = records


def read_entities(path: Path, ids: Path | None = None, arrays: Sequence[str] = ()) -> EntityTable:
    """Read ``kb_entity.json``, ordered by ``id`` as in the published code.

    Records are decoded and stored one by one, so that a large file needs little more memory than its table.

    Args:
        path: The file.
        ids: ``qid2id.json``, whose ids must match the knowledge base.
        arrays: Fields with (nested) lists of numbers, which become the entities' arrays.

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
        same = f"the entity {table[later].id!r} is also record {numbers[first]}. Keep one of them."
        problems.append((numbers[later], f"{where}: {same}"))
    messages = [problem for _, problem in sorted(problems, key=itemgetter(0))]
    dropped = {later for later, _ in repeated}
    order = [position for position in range(len(table)) if position not in dropped]
    try:
        order.sort(key=own_ids.__getitem__)
    except TypeError:
        messages.append("'id': some are numbers and some are text, which cannot be ordered. Use one type.")
    if order != list(range(len(table))):
        table = table.take(order)
    if ids is not None and ids.is_file():
        try:
            messages += _disagreements(ids, table, [own_ids[position] for position in order])
        except DataError as error:  # the knowledge base itself can still be read
            messages.append(f"with its list of ids: {error}")
    if messages:
        raise MalformedRecordsError(path, messages, table)
    if not table:
        raise DataError(f"{path} contains no entities. A knowledge base needs at least one.")
    return table


def read_mentions(path: Path, arrays: Sequence[str] = ()) -> list[Mention]:
    """Read a split's file.

    Args:
        path: The file.
        arrays: Fields with (nested) lists of numbers, which become the mentions' arrays.

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
    """Number and parsed form of every valid record; the problems of the others are collected."""
    for number, row in enumerate(stream_json(path, f"Reading {name}")):
        if not isinstance(row, dict):
            problem = f"record {number}: {row!r:.80} is not a JSON object. Fix or remove it."
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
    """Disagreements between ``qid2id.json`` and the knowledge base, whose ids are in the order of its table."""
    listed = read_json(path)
    if not isinstance(listed, dict):
        raise DataError(f"{path} contains a JSON {type(listed).__name__}; expected an object of qids and ids.")
    advice = f"Unpack both files from one release, or remove {path.name}: it is redundant."
    for qid, here in zip(table.positions, ids, strict=True):
        there = listed.pop(qid, None)
        if here != there:
            yield f"entity {qid!r}: its id is {_known(here)}, but in {path} it is {_known(there)}. {advice}"
    for qid, there in listed.items():
        if there is not None:
            yield f"entity {qid!r}: its id is {_known(None)}, but in {path} it is {_known(there)}. {advice}"


def _known(id_: object) -> str:
    return "missing" if id_ is None else repr(id_)


def _where(number: int, row: dict[str, Any]) -> str:
    return f"record {number} (id {row.get('id')!r:.40})"


def _id(row: dict[str, Any], number: int, where: str) -> int | str:
    """A record's id; the record's number if it has none."""
    value = row.get("id")
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: 'id' is {value!r:.80}; expected an integer or text.")
    return _unicode(value, "id", where) if isinstance(value, str) else value


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        have = ", ".join(sorted(row))
        raise DataError(f"{where}: {key!r} is {value!r:.80}; expected text. The record has: {have}.")
    return _unicode(value, key, where)


def _text_fields(row: dict[str, Any], where: str, without: tuple[str, ...]) -> dict[str, str]:
    """Every other text field, for the template; null becomes empty text."""
    return {
        _unicode(key, "the name of a field", where): _unicode(value or "", key, where)
        for key, value in row.items()
        if key not in without and (value is None or isinstance(value, str))
    }


def _array(row: dict[str, Any], key: str, where: str) -> npt.NDArray[Any]:
    """A list of numbers: float32 if any of them is a float, int64 otherwise."""
    try:
        array = np.array(row.get(key))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {key!r} is {row[key]!r:.80}; its rows have different lengths.") from error
    if array.dtype.kind not in "if" or not np.isfinite(array).all():
        raise DataError(f"{where}: {key!r} is {row.get(key)!r:.80}; expected a list of finite numbers.")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _unicode(value: str, key: str, where: str) -> str:
    """Check a text for unpaired surrogates, which JSON allows but tokenizers reject."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {key!r} has an unpaired surrogate at {error.start}. Fix the text.") from error
    return value


def _inside(name: object, where: str) -> str:
    """Check that an image's name stays inside its folder."""
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"{where}: the image {name!r:.80} is not a file name.")
    path = PurePosixPath(_unicode(name, "image", where).replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise DataError(f"{where}: the image {name!r} is outside the data folder. Use names inside it.")
    return name
