"""Plain records: the keys of :meth:`Entity.of <mimic_pl.records.Entity.of>` and :class:`~mimic_pl.records.Mention`.

An entity has ``id`` and ``name``; a mention has ``mention`` and usually ``sentence``, or ``sentence`` and the place of
the mention in it: ``start`` and ``end`` in characters, or ``spans``, a list of such pairs, one mention each. Both may
have an ``image``. Whatever else has a text becomes a field.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from mimic_pl.errors import DataError
from mimic_pl.formats.field_values import as_list, obvious_text, valid_unicode
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, Mention, text_at

ALIASES = "aliases"
"""Field of an entity with its other names."""

ALIAS_SEPARATOR = " | "
"""Between the names in :data:`ALIASES`."""


class PlainEntities(RowParser[Entity]):
    """Entities with ``id``, ``name``, and optionally ``image`` or ``images``, ``arrays`` and any other fields."""

    about = "id, name"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "id" in row and "name" in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Entity]:
        """The entity of a row."""
        fields = text_fields(self, row, without=("id", "name", "image", "images", "arrays", *self.arrays))
        return (
            Entity(
                id=self.entity_id(row, "id"),
                name=self.text(row, "name"),
                fields=fields,
                images=self.images(_images(row), "image", fields),
                arrays=_arrays(self, row),
            ),
        )


class PlainMentions(RowParser[Mention]):
    """Mentions with ``mention`` and ``sentence``, or with their places in it."""

    about = "mention (with sentence), or sentence with start and end, or sentence with spans"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        placed = "sentence" in row and ("spans" in row or ("start" in row and "end" in row))
        return ("mention" in row or placed) and "context_left" not in row

    def parse(self, row: dict[str, Any], ordinal: int) -> Iterator[Mention]:
        """The mentions of a row, one for each span; they have the id of the row."""
        own_id = str(self.id(row, ordinal))
        sentence = self.as_text(row.get("sentence") or "", "sentence")
        word = None if row.get("mention") in (None, "") else self.as_text(row["mention"], "mention")
        spans = _spans(row)
        if spans is None and word is None:
            self.text(row, "mention")  # raises an error that says what is there instead
            raise FieldError("'mention' is empty, and there is no place: 'start' and 'end', or 'spans'.", "no mention")
        without = ("id", "mention", "sentence", "start", "end", "spans", "golds", "gold", "image", "images", "arrays")
        fields = text_fields(self, row, (*without, *self.arrays))
        found = self.images(_images(row), "image", fields)
        if len(found) > 1:
            raise FieldError(f"there are {len(found)} images; a mention has one.", "several images")
        arrays = _arrays(self, row)
        for span in [None] if spans is None else spans:
            try:
                text = word if span is None else text_at(sentence, span, word)
            except DataError as error:
                raise FieldError(str(error), "span") from error
            yield Mention(
                id=own_id,
                mention=text or "",
                sentence=sentence,
                golds=self.golds(row.get("golds", row.get("gold")), "golds"),
                image=found[0] if found else None,
                fields=dict(fields),
                arrays=arrays,
                span=span,
            )


def text_fields(
    parser: RowParser[Any], row: Mapping[str, Any], without: Iterable[str], renamed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Every value with a text, as fields.

    Numbers, dates and booleans are written as text, nulls as empty text, lists with commas between their elements
    (aliases with :data:`ALIAS_SEPARATOR`). Other values, such as objects, are left out, which is logged once.

    Args:
        parser: The parser of the row, which counts what is left out.
        row: The row.
        without: Keys that are not fields.
        renamed: Names of fields that differ from their keys.
    """
    fields = {}
    for key, value in row.items():
        if key in without:
            continue
        text = _plain_text(value, key)
        if text is None:
            parser.note(f"{quoted(key)} is left out, since it is not text")
            continue
        name = renamed.get(key, key) if renamed else key
        fields[valid_unicode(name, "the name of a field")] = valid_unicode(text, key)
    return fields


def joined_aliases(aliases: Iterable[object]) -> str:
    """Other names of an entity as one text, without repetitions and empty ones."""
    return ALIAS_SEPARATOR.join(dict.fromkeys(name for alias in aliases if (name := " ".join(str(alias).split()))))


def _plain_text(value: object, key: str) -> str | None:
    if isinstance(value, str) and key == ALIASES:
        value = as_list(value)
    if isinstance(value, list):
        if key == ALIASES:
            return joined_aliases(part for part in value if isinstance(part, str | int | float))
        if key == "candidates":  # ids, which a comma may be part of
            return json.dumps(value, ensure_ascii=False)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    return obvious_text(value)


def _images(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row: files, contents, or what ``datasets`` makes of an image."""
    found: list[Any] = []
    for key in ("image", "images"):
        value = as_list(row.get(key))
        found += value if isinstance(value, list) else [value]
    return [_content(image) for image in found]


def _content(image: Any) -> Any:
    """The content or the path of an image column of ``datasets`` in a Parquet file; any other value is unchanged."""
    if isinstance(image, dict) and image.keys() <= {"bytes", "path"}:
        return image.get("bytes") or image.get("path")
    return image


def _arrays(parser: RowParser[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    nested = row.get("arrays") or {}
    if isinstance(nested, str):  # a cell of a CSV file
        with suppress(ValueError, RecursionError):
            nested = json.loads(nested)
    if not isinstance(nested, dict):
        raise FieldError(f"'arrays' is {quoted(nested)}; expected an object with lists of numbers.", "arrays")
    return {name: parser.array(nested, name) for name in nested} | {
        name: parser.array(row, name) for name in parser.arrays if name not in nested
    }


def _spans(row: Mapping[str, Any]) -> list[tuple[Any, Any]] | None:
    """The places in the sentence; ``None`` if there are none."""
    spans = as_list(row.get("spans"))
    start, end = row.get("start"), row.get("end")
    if spans in (None, ""):
        if start in (None, "") and end in (None, ""):
            return None
        spans = [[start, end]]
    if not isinstance(spans, list) or not spans:
        raise FieldError(f"'spans' is {quoted(spans)}; expected a list of [start, end].", "spans")
    return [_span(span) for span in spans]


def _span(span: object) -> tuple[Any, Any]:
    if isinstance(span, dict):
        span = [span.get("start"), span.get("end")]
    if not isinstance(span, list | tuple) or len(span) != 2:
        raise FieldError(f"{quoted(span)} is not a span: expected [start, end].", "spans")
    # The cells of a CSV file are text.
    start, end = (int(place) if isinstance(place, str) and place.strip().isdecimal() else place for place in span)
    return start, end
