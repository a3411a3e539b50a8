"""Entities of lists, iterators and files are read again and again, and not kept."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
from PIL import Image

from mimic_pl.errors import DataError
from mimic_pl.linking.entity_records import EntityRecords
from mimic_pl.processor import BM25Lexicon, Processor, RecordArrays
from mimic_pl.records import Entity

RECORDS = [{"id": f"Q{n}", "name": f"name {n}", "attr": f"a word {n % 7}"} for n in range(200)]
ENTITIES = [Entity.of(record) for record in RECORDS]


def alive():
    """Entities in memory, those of other tests in this process included."""
    return sum(type(found) is Entity for found in gc.get_objects())


def in_a_file(folder):
    (folder / "kb.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    return folder / "kb.jsonl"


@pytest.mark.parametrize("source", [lambda _: RECORDS, lambda _: iter(RECORDS), in_a_file])
def test_records_are_read_again(tmp_path, source):
    records = EntityRecords(source(tmp_path))
    assert records.count() == 200
    assert list(records) == ENTITIES
    assert all(one == other for one, other in zip(records, records, strict=True)), "at the same time"


@pytest.mark.parametrize("source", [lambda _: (dict(record) for record in RECORDS), in_a_file])
def test_records_are_not_kept(tmp_path, source):
    """Nor does a processor with several features keep them, which reads them more than once."""
    gc.collect()
    before = alive()
    records, most = EntityRecords(source(tmp_path)), 0

    class Watched:
        def __iter__(self):
            nonlocal most
            for number, entity in enumerate(records):
                if number % 50 == 0:
                    most = max(most, alive() - before)
                yield entity

    features = {"words": BM25Lexicon(), "letters": BM25Lexicon(ngrams=3), "type": RecordArrays(entity="type")}
    fitted = Processor(features=features).fit(Watched())
    assert 1 <= most < 5
    expected = Processor(features=features).fit(ENTITIES)
    found, known = fitted.statistics(), expected.statistics()
    assert found.keys() == known.keys() and all(np.array_equal(found[name], known[name]) for name in known)


def test_images_and_arrays_of_an_iterator():
    image = Image.new("RGB", (3, 2), (200, 10, 10))
    given = {"id": "A", "name": "a", "images": [b"\xff\xd8", image, "a.jpg"], "arrays": {"type": [0.5]}}
    (entity,) = EntityRecords(iter([given]), image_folder="folder")
    assert entity.images[0] == b"\xff\xd8" and entity.images[2] == "folder/a.jpg" and entity.arrays == {"type": [0.5]}
    assert entity.images[1].tobytes() == image.tobytes()


def test_a_malformed_record_of_an_iterator():
    with pytest.raises(DataError, match="has no 'name'"):
        EntityRecords(iter([{"id": "A"}]))
