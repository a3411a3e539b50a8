"""Links as JSON Lines: the form in which they are written first, whatever the format of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mimic_pl.errors import DataError
from mimic_pl.formats.plain_layout import PlainMentions
from mimic_pl.formats.read_records import read_records
from mimic_pl.formats.record_error import FieldError, RecordError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.links import Link, Links
from mimic_pl.quoting import listed, quoted
from mimic_pl.records import Entity, Mention


def link_record(links: Links) -> dict[str, Any]:
    """The candidates of a mention as plain JSON values.

    An entity is written by id and name; the knowledge base has the rest. Images that are no files are left out.
    """
    record: dict[str, Any] = {"number": links.number}
    if links.mention is not None:
        record |= mention_record(links.mention)
    record["candidates"] = [
        {
            "id": link.entity.id,
            "name": link.entity.name,
            "score": float(link.score),
            "probability": None if link.probability is None else float(link.probability),
            "units": {name: float(score) for name, score in link.units.items()},
        }
        for link in links.candidates
    ]
    record["nil_probability"] = None if links.nil_probability is None else float(links.nil_probability)
    record["nil"] = links.is_nil
    record["certified"] = links.certified
    record["error"] = None if links.error is None else str(links.error)
    return record


def mention_record(mention: Mention) -> dict[str, Any]:
    """A mention as a plain record, with its own fields in ``fields``."""
    record: dict[str, Any] = {"id": mention.id, "mention": mention.mention, "sentence": mention.sentence}
    if mention.span is not None:
        record["start"], record["end"] = mention.span
    if isinstance(mention.image, str | Path):
        record["image"] = str(mention.image)
    if mention.golds:
        record["golds"] = list(mention.golds)
    if mention.fields:
        record["fields"] = dict(mention.fields)
    return record


def read_links(path: str | Path) -> Iterator[Links | RecordError]:
    """Stream the links of a JSON Lines file, of :func:`~mimic_pl.formats.open_writer` or of ``mimic-pl predict``.

    Yields:
        The links of each mention, with entities that have only id and name; in place of a record that cannot be used,
        an error with its place.

    Raises:
        DataError: The file cannot be read.
    """
    path = Path(path)
    parser = PlainMentions(path, lambda image, key: image)
    for ordinal, (unit, number, row) in enumerate(read_records(path, None)):
        try:
            if isinstance(row, FieldError):
                raise row
            if not isinstance(row, dict) or not isinstance(row.get("candidates"), list):
                has = f" It has: {listed(row)}." if isinstance(row, dict) else ""
                raise FieldError(f"it has no list of 'candidates', so it is not a link.{has}", "no link")
            yield _links(parser, row, ordinal)
        except FieldError as error:
            yield RecordError(path, unit, number, row.get("id") if isinstance(row, dict) else None, error)


def _links(parser: RowParser[Mention], row: dict[str, Any], ordinal: int) -> Links:
    mention = None
    if "mention" in row or "sentence" in row:
        keys = ("id", "mention", "sentence", "start", "end", "image")
        own: dict[str, Any] = {key: row[key] for key in keys if key in row}
        golds = [gold.get("qid") if isinstance(gold, dict) else gold for gold in row.get("golds") or ()]
        fields = row.get("fields") or {}
        (mention,) = parser.parse({**fields, **own, "golds": golds}, ordinal)
    error = row.get("error")
    return Links(
        mention,
        tuple(_link(candidate) for candidate in row["candidates"]),
        row.get("nil_probability"),
        None if error is None else DataError(str(error)),
        row.get("number", ordinal),
        row.get("certified"),
    )


def _link(candidate: object) -> Link:
    try:
        assert isinstance(candidate, Mapping)
        scores = dict(candidate.get("scores") or candidate.get("units") or {})
        score = candidate["score"] if "score" in candidate else scores.pop("overall")
        entity = Entity(str(candidate["id"] if "id" in candidate else candidate["qid"]), str(candidate["name"]))
        return Link(entity, float(score), candidate.get("probability"), scores)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise FieldError(
            f"the candidate {quoted(candidate)} has no id, name and score.", "candidate without id, name and score"
        ) from error
