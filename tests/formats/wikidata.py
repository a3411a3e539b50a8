"""Makes entities in the JSON of Wikidata's dumps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def item(id_: str, en: str | None = None, type_: str = "item", **parts: Any) -> dict[str, Any]:
    """An item with an English label, and further parts as they are."""
    labels = {"en": value("en", en)} if en is not None else []  # empty parts are lists there
    entity = {"type": type_, "id": id_, "labels": labels, "descriptions": [], "aliases": [], "claims": []}
    return {**entity, "sitelinks": {}, "pageid": 1, "ns": 0, "modified": "2026-01-01T00:00:00Z", **parts}


def value(language: str, text: str) -> dict[str, str]:
    return {"language": language, "value": text}


def image(name: str, rank: str = "normal") -> dict[str, Any]:
    return statement("P18", {"value": name, "type": "string"}, "commonsMedia", rank)


def instance_of(id_: str, rank: str = "normal") -> dict[str, Any]:
    target = {"entity-type": "item", "numeric-id": int(id_[1:]), "id": id_}
    return statement("P31", {"value": target, "type": "wikibase-entityid"}, "wikibase-item", rank)


def statement(name: str, data: dict[str, Any] | None, kind: str, rank: str) -> dict[str, Any]:
    snak = {"snaktype": "novalue" if data is None else "value", "property": name, "datatype": kind, "hash": "0" * 40}
    if data is not None:
        snak["datavalue"] = data
    return {"mainsnak": snak, "type": "statement", "id": "Q1$0", "rank": rank}


def dump(path: Path, *entities: dict[str, Any] | str) -> Path:
    """Write a dump: an array with one entity a line. A text stands for itself."""
    lines = [entity if isinstance(entity, str) else json.dumps(entity) for entity in entities]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return path
