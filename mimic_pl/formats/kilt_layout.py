r"""The JSON Lines of KILT: its knowledge source, its tasks of entity linking, and predictions for them.

A page is ``{"wikipedia_id": "290", "wikipedia_title": "A", "text": ["A\n", "A is the first letter. ...", ...]}``, a
mention ``{"id": ..., "input": "He met [START_ENT] Jordan [END_ENT] .", "output": [{"answer": ..., "provenance":
[{"wikipedia_id": ..., "title": ...}]}]}``. Predictions have the form of mentions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mimic_pl.formats.part_file import Records
from mimic_pl.formats.plain_layout import ALIASES, joined_aliases, text_fields
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, Mention

_START, _END = "[START_ENT]", "[END_ENT]"
_SECTION = "Section::::"
"""Begins the paragraph with the title of a section."""


class KiltEntities(RowParser[Entity]):
    """Pages of KILT's knowledge source: ``text`` is the introduction, up to the first section.

    Of ``wikidata_info``, ``wikidata_id``, ``description`` and ``aliases`` become fields, which are empty if unknown, so
    that all pages have the same ones.
    """

    key = "wikipedia_id"
    shown = "wikipedia_id"
    about = "wikipedia_id, wikipedia_title"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "wikipedia_id" in row and "wikipedia_title" in row and "context_left" not in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Entity]:
        """The entity of a page."""
        name = self.text(row, "wikipedia_title")
        known = row.get("wikidata_info")
        known = known if isinstance(known, dict) else {}
        about = {key: known.get(key) or "" for key in ("description", "wikidata_id")}
        aliases = _inner(known.get("aliases"), "alias")
        fields = text_fields(self, {"categories": row.get("categories"), **about}, ())
        fields = {"text": _introduction(row, name), **fields, ALIASES: joined_aliases(aliases)}
        return (Entity(self.entity_id(row, "wikipedia_id"), name, fields),)


class KiltMentions(RowParser[Mention]):
    """Mentions of KILT's entity linking: the text between the markers, without them the sentence.

    The golds are the Wikipedia ids of all provenances; ``answer`` is the title of the first.
    """

    about = "input with [START_ENT] and [END_ENT], output"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "input" in row and "mention" not in row and ("output" in row or _START in str(row["input"]))

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Mention]:
        """The mention of a row."""
        text = self.text(row, "input")
        before, start, rest = text.partition(_START)
        inside, end, after = rest.partition(_END)
        word = inside.strip()
        if not start or not end or not word:
            raise FieldError(f"'input' has no mention between {_START} and {_END}: {quoted(text)}.", "no mention")
        if not before.strip():
            before = ""
        outputs = row.get("output") or []
        if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
            raise FieldError(f"'output' is {quoted(outputs)}; expected a list of objects.", "output")
        pages = [page for output in outputs for page in _objects(output.get("provenance"))]
        answer = next((output["answer"] for output in outputs if isinstance(output.get("answer"), str)), None)
        return (
            Mention(
                id=str(self.id(row, ordinal)),
                mention=word,
                sentence=before + word + after,
                golds=tuple(dict.fromkeys(str(page["wikipedia_id"]) for page in pages if page.get("wikipedia_id"))),
                fields={} if answer is None else {"answer": answer},
                span=(len(before), len(before) + len(word)),
            ),
        )


def write_kilt_predictions(records: Records, path: Path) -> None:
    """Write links as predictions for KILT.

    ``input`` has the mention between the markers. ``answer`` is the name of the first candidate, empty for NIL; the
    provenance has all candidates, best first, with their entities' ids as ``wikipedia_id``. Mentions that could not be
    linked have an empty answer and no provenance, since KILT's evaluation expects a line for each.
    """
    with path.open("w", encoding="utf-8") as file:
        for row in records():
            found = row["candidates"]
            answer = "" if row["nil"] or not found else found[0]["name"]
            provenance = [{"wikipedia_id": link["id"], "title": link["name"]} for link in found]
            own_id = row.get("id") or str(row["number"])
            line = {"id": own_id, "input": _marked(row), "output": [{"answer": answer, "provenance": provenance}]}
            file.write(json.dumps(line) + "\n")


def _marked(row: Mapping[str, Any]) -> str:
    sentence, word = row.get("sentence") or row.get("mention") or "", row.get("mention") or ""
    start = row.get("start")
    if start is None:
        start = sentence.find(word)
    if start < 0:
        return f"{_START} {word} {_END} {sentence}"
    return f"{sentence[:start]}{_START} {word} {_END}{sentence[start + len(word) :]}"


def _introduction(row: Mapping[str, Any], name: str) -> str:
    paragraphs = _inner(row.get("text"), "paragraph")
    kept: list[str] = []
    for paragraph in paragraphs:
        if not isinstance(paragraph, str):
            raise FieldError(f"the paragraph {quoted(paragraph)} is not text.", "paragraph")
        if paragraph.startswith(_SECTION):
            break
        kept.append(paragraph.strip())
    if kept and kept[0] == name:
        del kept[0]
    return " ".join(filter(None, kept))


def _inner(value: Any, key: str) -> list[Any]:
    """A list, which ``datasets`` puts into an object."""
    if isinstance(value, dict):
        value = value.get(key)
    if value is not None and not isinstance(value, list):
        raise FieldError(f"{quoted(value)} is not a list of {key}s.", key)
    return value or []


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (part for part in value if isinstance(part, dict)) if isinstance(value, list) else iter(())
