"""Links in NIF 2.1, the NLP Interchange Format, as Turtle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mimic_pl.formats.optional_package import optional_package
from mimic_pl.formats.part_file import Records

_NIF = "http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#"
_ITSRDF = "http://www.w3.org/2005/11/its/rdf#"
_WIKIDATA = "http://www.wikidata.org/entity/"
_SENTENCES = "urn:mimic-pl:sentence:"
_ENTITIES = "urn:mimic-pl:entity:"

_MENTIONS = 1000
"""Mentions in memory at the same time."""


def write_nif(records: Records, path: Path) -> None:
    """Write links as NIF.

    Each sentence is a ``nif:Context`` named by its SHA-256, so that mentions of one sentence share it; each mention is
    a ``nif:Phrase`` with its place in characters, ``itsrdf:taIdentRef`` (the first candidate; none for NIL) and
    ``itsrdf:taConfidence`` (its probability to seven digits; for NIL, that no entity is meant; none without a
    calibration). A mention without a known place is placed at its first occurrence in the sentence; one that does not
    occur there, or could not be linked, is left out. The addresses of entities are those of :func:`entity_address`.

    Raises:
        ConfigError: The package rdflib is not installed.
    """
    with path.open("wb") as file:
        rows = records()
        while batch := list(islice(rows, _MENTIONS)):
            # Turtle may repeat its prefixes, so that parts one after the other are one document.
            file.write(_turtle(batch))


def entity_address(entity_id: str) -> str:
    """The IRI of an entity: an id that is one stays, ``Q42`` is Wikidata's, any other becomes a URN.

    Example:
        >>> entity_address("Q42"), entity_address("U 1")
        ('http://www.wikidata.org/entity/Q42', 'urn:mimic-pl:entity:U%201')
    """
    if re.match(r"(https?://|urn:)[^\s<>\"{}|\\^`]+$", entity_id):
        return entity_id
    if re.fullmatch(r"Q[1-9][0-9]*", entity_id):
        return _WIKIDATA + entity_id
    return _ENTITIES + quote(entity_id, safe="", errors="replace")


def _turtle(records: list[dict[str, Any]]) -> bytes:
    rdflib = optional_package("rdflib", "Writing NIF")
    nif, itsrdf = rdflib.Namespace(_NIF), rdflib.Namespace(_ITSRDF)
    graph = rdflib.Graph()
    graph.bind("nif", nif)
    graph.bind("itsrdf", itsrdf)
    for node, name, value in _statements(records, rdflib, nif, itsrdf):
        graph.add((node, name, value))
    content: bytes = graph.serialize(format="turtle", encoding="utf-8")
    return content


def _statements(records: list[dict[str, Any]], rdflib: Any, nif: Any, itsrdf: Any) -> Iterator[tuple[Any, Any, Any]]:
    kind, offset = rdflib.RDF.type, rdflib.XSD.nonNegativeInteger

    def string(node: Any, begin: int, end: int) -> Iterator[tuple[Any, Any, Any]]:
        yield node, kind, nif.OffsetBasedString
        yield node, nif.beginIndex, rdflib.Literal(begin, datatype=offset)
        yield node, nif.endIndex, rdflib.Literal(end, datatype=offset)

    for row in records:
        place = _place(row)
        if place is None:
            continue
        text = row["sentence"] or row["mention"]
        sentence = text.encode(errors="replace").decode()  # no encoding has unpaired surrogates
        begin, end = place
        base = _SENTENCES + hashlib.sha256(sentence.encode()).hexdigest()
        context = rdflib.URIRef(f"{base}#offset_0_{len(sentence)}")
        yield from string(context, 0, len(sentence))
        yield context, kind, nif.Context
        yield context, nif.isString, rdflib.Literal(sentence)
        phrase = rdflib.URIRef(f"{base}#offset_{begin}_{end}")
        yield from string(phrase, begin, end)
        yield phrase, kind, nif.Phrase
        yield phrase, nif.anchorOf, rdflib.Literal(sentence[begin:end])
        yield phrase, nif.referenceContext, context
        confidence = row["nil_probability"] if row["nil"] else row["candidates"][0]["probability"]
        if not row["nil"]:
            yield phrase, itsrdf.taIdentRef, rdflib.URIRef(entity_address(row["candidates"][0]["id"]))
        if confidence is not None:
            yield phrase, itsrdf.taConfidence, rdflib.Literal(float(confidence), datatype=rdflib.XSD.double)


def _place(row: dict[str, Any]) -> tuple[int, int] | None:
    """Begin and end of the mention in the sentence, if known; ``None`` for what could not be linked as well."""
    word = row.get("mention")
    if not word or row["error"] is not None:
        return None
    if row.get("start") is not None:
        return row["start"], row["end"]
    begin = (row.get("sentence") or word).find(word)
    return None if begin < 0 else (begin, begin + len(word))
