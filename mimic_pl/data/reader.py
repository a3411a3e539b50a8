"""The published on-disk layout -> records."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from mimic_pl.data.records import Entity, Mention
from mimic_pl.errors import DataError

NIL = "nil"
"""The answer of a mention whose entity is in no knowledge base."""


def read_entities(path: Path) -> list[Entity]:
    """Read ``kb_entity.json``, in the order of its ``id`` as the published code does.

    Raises:
        DataError: The file is missing or malformed, or two entities share a ``qid``.
    """
    rows = read_json_list(path)
    if not rows:
        raise DataError(f"{path} holds no entities. A knowledge base needs at least one.")
    entities: list[tuple[Any, Entity]] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        where = f"{path}, record {number}"
        qid = _text(row, "qid", where)
        if qid in seen:
            raise DataError(f"{where}: the entity {qid!r} was already record {seen[qid]}. Keep one of them.")
        seen[qid] = number
        pictures = row.get("image_list") or []
        if isinstance(pictures, str):
            pictures = [pictures]
        entities.append(
            (
                row.get("id", number),
                Entity(
                    qid=qid,
                    name=unquote(_text(row, "entity_name", where)),
                    fields=_text_fields(row, without=("id", "qid", "entity_name", "image_list", "type")),
                    pictures=tuple(_inside(name, where) for name in pictures if name),
                ),
            )
        )
    try:
        entities.sort(key=lambda pair: pair[0])
    except TypeError as error:
        raise DataError(f"{path}: the entities' ids are of several types and can not be ordered: {error}") from error
    return [entity for _, entity in entities]


def read_mentions(path: Path) -> list[Mention]:
    """Read a split's file.

    Raises:
        DataError: The file is missing or malformed.
    """
    return [_mention(row, number, path) for number, row in enumerate(read_json_list(path))]


def _mention(row: dict[str, Any], number: int, path: Path) -> Mention:
    where = f"{path}, record {number}"
    answer = row.get("answer")
    answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
    if not all(isinstance(gold, str) for gold in answers):
        raise DataError(f"{where}: 'answer' is {answer!r}; expected a qid, a list of qids, or 'nil'.")
    picture = row.get("imgPath") or None
    if picture is not None and not isinstance(picture, str):
        raise DataError(f"{where}: 'imgPath' is {picture!r}; expected a file name.")
    return Mention(
        id=str(row.get("id", number)),
        mention=unquote(_text(row, "mentions", where)),
        sentence=_text(row, "sentence", where),
        golds=tuple(dict.fromkeys(gold for gold in answers if gold.lower() != NIL)),
        picture=_inside(picture, where) if picture else None,
        fields=_text_fields(row, without=("id", "mentions", "sentence", "answer", "imgPath")),
    )


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON file that holds a list of objects.

    Raises:
        DataError: It is missing, no UTF-8, no JSON, or something else than a list of objects.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path} holds a JSON {type(content).__name__} where a list of records is due.")
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise DataError(f"{path}, record {number} is {row!r:.80}; expected an object with named fields.")
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is missing, no UTF-8, or no JSON; the message has line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except OSError as error:
        raise DataError(f"{path} can not be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a data set.") from error


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        have = ", ".join(sorted(map(str, row)))
        raise DataError(f"{where}: {key!r} is {value!r}; expected a text. The record has: {have}.")
    return value


def _text_fields(row: dict[str, Any], without: tuple[str, ...]) -> dict[str, str]:
    """Every other text field, for the template; a missing value is an empty text."""
    return {key: value or "" for key, value in row.items() if key not in without and isinstance(value, str | None)}


def _inside(name: object, where: str) -> str:
    """A picture's name, which must stay inside its folder."""
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"{where}: the picture {name!r} is no file name.")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: the picture {name!r} lies outside of the data folder. Use names inside of it.")
    return name
