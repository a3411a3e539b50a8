"""Whatever a file contains, readers yield records and errors with a place, and raise nothing but MimicErrors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl import Entity, Mention
from mimic_pl.errors import MimicError
from mimic_pl.formats import ENTITY_LAYOUTS, MENTION_LAYOUTS, RecordError, read_entities, read_links, read_mentions
from mimic_pl.links import Links

KEYS = [
    *("id", "name", "image", "images", "arrays", "aliases", "qid", "entity_name", "image_list", "title", "text", "idx"),
    *("document_id", "wikipedia_id", "wikipedia_title", "wikidata_info", "labels", "descriptions", "claims", "type"),
    *("entity_id", "label", "mention", "sentence", "start", "end", "spans", "golds", "gold", "mentions", "answer"),
    *("imgPath", "context_left", "context_right", "label_id", "input", "output", "provenance", "context_document_id"),
    *("start_index", "end_index", "corpus", "candidates", "units", "scores", "score", "en", "value", "P18", "P31"),
    *("mainsnak", "datavalue", "rank", "snaktype", "numeric-id", "fields", "error", "number", "nil_probability"),
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["[START_ENT]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
rows = st.lists(st.dictionaries(st.sampled_from(KEYS), values, max_size=8) | values, min_size=1, max_size=4)


def readers():
    for name in (None, *ENTITY_LAYOUTS):
        yield pytest.param(lambda path, name=name: read_entities(path, name), Entity, id=f"entities-{name}")
    for name in (None, *MENTION_LAYOUTS):
        yield pytest.param(lambda path, name=name: read_mentions(path, name), Mention, id=f"mentions-{name}")
    yield pytest.param(read_links, Links, id="links")


@pytest.mark.parametrize(("read", "kind"), list(readers()))
@settings(deadline=None, max_examples=40)
@given(rows=rows, suffix=st.sampled_from([".jsonl", ".json"]))
def test_any_records(tmp_path_factory, read, kind, rows, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    try:
        found = list(read(path))
    except MimicError as error:
        assert str(path) in str(error)
        return
    for record in found:
        assert isinstance(record, kind | RecordError)
        if isinstance(record, RecordError):
            assert str(path) in str(record) and record.kind and record.place
        elif isinstance(record, Entity):
            assert isinstance(record.name, str) and all(isinstance(text, str) for text in record.fields.values())
        elif isinstance(record, Mention):
            assert record.span is None or record.sentence[slice(*record.span)] == record.mention
            record.mention.encode()  # no unpaired surrogates
            assert all(isinstance(gold, str) for gold in record.golds)


@pytest.mark.parametrize(("read", "kind"), list(readers()))
@settings(deadline=None, max_examples=20)
@given(
    content=st.binary(min_size=1, max_size=40),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".json.gz"]),
)
def test_any_bytes(tmp_path_factory, read, kind, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(content)
    try:
        for record in read(path):
            assert isinstance(record, kind | RecordError)
    except MimicError as error:
        assert str(path) in str(error)
