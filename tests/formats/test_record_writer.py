"""Entities and mentions that were written are read back the same; MIMIC's layout by the data modules too."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl import Entity, Mention
from mimic_pl.data.reader import read_entities as entities_of_data
from mimic_pl.data.reader import read_mentions as mentions_of_data
from mimic_pl.errors import ConfigError
from mimic_pl.formats import open_record_writer, read_entities, read_mentions
from tests.formats.some_links import mentions, names, texts

keys = st.sampled_from(["attr", "note", "=k", "x,y"])
suffixes = st.sampled_from([".jsonl", ".json", ".csv", ".parquet"])
images = st.sampled_from(["a.jpg", "sub/b ç.png", "/elsewhere/c.jpg"])
entities = st.builds(Entity, names, texts, st.dictionaries(keys, texts, max_size=3), st.lists(images).map(tuple))


def write(path, records, layout="plain"):
    with open_record_writer(path, type(records[0]), layout) as writer:
        for record in records:
            writer.write(record)
    assert writer.images_left_out == 0
    return path


def located(folder, image):
    return os.path.join(folder, image)


def with_all_fields(records):
    """Tables have one set of columns; what a record lacks is empty there."""
    columns = dict.fromkeys(key for record in records for key in record.fields)
    return [{key: record.fields.get(key, "") for key in columns} for record in records]


@settings(deadline=None, max_examples=50)
@given(st.lists(entities, min_size=1, max_size=4), suffixes)
def test_entities(tmp_path_factory, records, suffix):
    folder = tmp_path_factory.getbasetemp()
    records = [Entity(e.id, e.name, e.fields, tuple(located(folder, image) for image in e.images)) for e in records]
    found = list(read_entities(write(folder / f"kb{suffix}", records)))
    assert [(e.id, e.name, e.images) for e in found] == [(e.id, e.name, e.images) for e in records]
    tables = suffix in (".csv", ".parquet")
    assert [e.fields for e in found] == (with_all_fields(records) if tables else [e.fields for e in records])


@settings(deadline=None, max_examples=50)
@given(st.lists(mentions(), min_size=1, max_size=4), suffixes)
def test_mentions(tmp_path_factory, records, suffix):
    folder = tmp_path_factory.getbasetemp()
    found = list(read_mentions(write(folder / f"m{suffix}", records)))
    for mine, other in zip(found, records, strict=True):
        assert (mine.id, mine.mention, mine.sentence, mine.golds, mine.span) == (
            *(other.id, other.mention, other.sentence, other.golds, other.span),
        )
        assert mine.fields.items() >= other.fields.items()
        assert mine.image == (None if other.image is None else os.path.abspath(other.image))


@settings(deadline=None, max_examples=30)
@given(st.lists(entities, min_size=1, max_size=4, unique_by=lambda entity: entity.id), suffixes)
def test_mimics_layout_of_entities(tmp_path_factory, records, suffix):
    folder = tmp_path_factory.getbasetemp() / "Set"
    trusted = folder / "kb_image"
    records = [Entity(e.id, e.name, e.fields, tuple(located(trusted, image) for image in e.images)) for e in records]
    path = write(folder / f"kb_entity{suffix}", records, "mimic")
    found = list(read_entities(path, image_folder=trusted))
    assert [(e.id, e.name, e.images) for e in found] == [(e.id, e.name, e.images) for e in records]
    inside = [Entity(e.id, e.name, e.fields, tuple(i for i in e.images if "elsewhere" not in i)) for e in records]
    table = entities_of_data(write(folder / f"kb_entity{suffix}", inside, "mimic"))
    for mine, other in zip(table, inside, strict=True):
        assert (mine.id, mine.name) == (other.id, other.name)
        assert mine.image_files == tuple(os.path.relpath(image, trusted) for image in other.images)
        assert mine.fields.items() >= {key: text for key, text in other.fields.items() if key != "attr"}.items()


@settings(deadline=None, max_examples=30)
@given(st.lists(mentions(), min_size=1, max_size=4))
def test_mimics_layout_of_mentions(tmp_path_factory, records):
    folder = tmp_path_factory.getbasetemp() / "Set"
    found = mentions_of_data(
        write(folder / "Set_test.json", [Mention(m.id, m.mention, m.sentence, m.golds) for m in records], "mimic")
    )
    assert [(m.id, m.mention, m.sentence, m.golds) for m in found] == [
        (m.id, m.mention, m.sentence, m.golds) for m in records
    ]


def test_the_text_of_an_entity_becomes_attr(tmp_path):
    path = write(tmp_path / "kb_entity.json", [Entity("Q1", "50% off", {"description": "a shop"})], "mimic")
    (entity,) = entities_of_data(path)
    assert (entity.name, entity.fields) == ("50% off", {"attr": "a shop", "description": "a shop"})


def test_arrays_and_images_that_are_no_files(tmp_path):
    entity = Entity("Q1", "n", {}, (b"content", "a.jpg"), {"v": np.array([[1.5, 2]], np.float32)})
    for suffix in (".jsonl", ".csv", ".parquet"):
        path = tmp_path / f"kb{suffix}"
        with open_record_writer(path, Entity) as writer:
            writer.write(entity)
        assert writer.images_left_out == 1
        (again,) = read_entities(path)
        assert again.images == (os.path.abspath("a.jpg"),) and np.array_equal(again.arrays["v"], entity.arrays["v"])


def test_nothing_is_left_of_a_failed_conversion(tmp_path):
    with pytest.raises(ZeroDivisionError), open_record_writer(tmp_path / "kb.csv", Entity) as writer:
        writer.write(Entity("Q1", "n"))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == [".kb.csv.lock"]


@pytest.mark.parametrize(
    ("name", "layout", "says"), [("kb.xml", "plain", ".jsonl"), ("kb.csv", "other", "plain or mi")]
)
def test_unknown_formats(tmp_path, name, layout, says):
    with pytest.raises(ConfigError, match=says):
        open_record_writer(tmp_path / name, Entity, layout)
