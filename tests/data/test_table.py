"""An entity table behaves like a list of entities, but holds no objects."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data import Entity
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.errors import DataError

texts = st.text(max_size=6)  # including lone surrogates and empty texts
records = st.lists(
    st.builds(Entity, texts, texts, st.dictionaries(texts, texts, max_size=3), st.lists(texts, max_size=3).map(tuple)),
    max_size=8,
)
places = st.none() | st.integers(-10, 10)
slices = st.builds(slice, places, places, st.sampled_from([None, 1, 2, -1, -3]))


@given(records)
def test_entities_round_trip(entities):
    table = EntityTable(iter(entities))
    assert isinstance(table, Sequence) and len(table) == len(entities)
    assert list(table) == entities and table == entities and list(reversed(table)) == entities[::-1]
    for position in range(-len(entities), len(entities)):
        assert table[position] == entities[position]
        assert list(table[position].fields) == list(entities[position].fields)  # in the same order, too
    for beyond in (len(entities), -len(entities) - 1):
        with pytest.raises(IndexError):
            table[beyond]
    assert as_table(table) is table and as_table(entities) == table


@given(records, slices, slices)
def test_slices_of_slices(entities, outer, inner):
    table = EntityTable(entities)
    assert table[outer] == entities[outer] and table[outer][inner] == entities[outer][inner]
    assert dict(table[outer].positions) == {entity.id: at for at, entity in enumerate(entities[outer])}
    order = list(range(len(entities)))[outer]
    assert table.take(order) == [entities[position] for position in order]


@given(records, st.lists(texts))
def test_positions_are_those_of_a_dictionary(entities, others):
    positions, expected = EntityTable(entities).positions, {entity.id: at for at, entity in enumerate(entities)}
    for qid in [*expected, *others, "\ud800"]:
        assert (qid in positions) == (qid in expected)
        assert positions.get(qid) == expected.get(qid)
    assert list(positions) == [entity.id for entity in entities]
    assert 5 not in positions and None not in positions
    with pytest.raises(KeyError, match="nowhere"):
        positions["nowhere"]


@given(records)
def test_repeated_entities_are_found(entities):
    qids = [entity.id for entity in entities]
    expected = [(at, qids.index(qid)) for at, qid in enumerate(qids) if qid in qids[:at]]
    assert EntityTable(entities).positions.repeated() == expected


def test_entities_whose_checksums_are_the_same():
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    positions = EntityTable([Entity(qid, "") for qid in ("buckeroo", "Q1", "plumless")]).positions
    assert (positions["plumless"], positions["buckeroo"]) == (2, 0) and positions.repeated() == []
    alone = EntityTable([Entity("plumless", "")]).positions
    assert "buckeroo" not in alone and alone["plumless"] == 0


@given(records)
def test_equality(entities):
    table = EntityTable(entities)
    assert table == EntityTable(entities) and table != [*entities, Entity("Q", "")] and table != 5
    for at, entity in enumerate(entities):
        other = list(entities)
        other[at] = replace(entity, images=(*entity.images, "x"))
        assert table != other


@given(records)
def test_without_images(entities):
    assert EntityTable(entities).without_images() == [replace(entity, images=()) for entity in entities]


@given(records)
def test_it_can_be_pickled(entities):
    table = EntityTable(entities)
    assert pickle.loads(pickle.dumps(table)) == entities
    dict(table.positions)  # built, and pickled with the table
    assert pickle.loads(pickle.dumps(table)).positions == table.positions


def test_an_entity_takes_little_more_memory_than_its_texts():
    table = EntityTable(Entity(f"Q{i:05}", "name", {"attr": "a" * 80}, (f"Q{i:05}.jpg",)) for i in range(10_000))
    assert table.nbytes < 10_000 * (6 + 4 + 80 + 10 + 30)
    assert len(pickle.dumps(table)) < table.nbytes + 2_000


@pytest.mark.parametrize("bad", [{"name": None}, {"fields": {"attr": 3}}, {"images": (Path("x.jpg"),)}])
def test_values_that_are_not_text_are_rejected(bad):
    with pytest.raises(DataError, match="'Q7' (has|contains) "):
        EntityTable([Entity("Q1", "fine"), replace(Entity("Q7", "name"), **bad)])


SCRIPT = """
import sys
from mimic_pl import MELDataModule
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.processor import ImageProcessor, Processor, TextTokenizer

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

module = MELDataModule(sys.argv[1], name="Set", num_workers=0)
words = TextTokenizer(build_tokenizer(f"word{i}" for i in range(5_000)), 40)
module.processor = Processor().connect(lambda: words, lambda: ImageProcessor(32, [0.5] * 3, [0.5] * 3))
words(["once, for what a tokenizer loads"])
before = peak()
module.setup("predict")
assert len(module.entities) == module.entities.positions[module.entities[-1].id] + 1
(batch,) = module.predict_dataloader()
assert batch["gold"].tolist() == [[77]]
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_large_knowledge_base_opens_in_little_memory(tmp_path):
    """Fifty thousand entities, whose objects alone would take 60 MB. The memory of imports is not counted."""
    count = 50_000
    with (tmp_path / "kb_entity.json").open("w") as file:
        for i in range(count):
            words = " ".join(f"word{i * 7919 * place % 5_000}" for place in range(1, 10))
            row = {"id": i, "qid": f"Q{i}", "entity_name": f"Entity {i}", "attr": words, "image_list": [f"Q{i}_0.jpg"]}
            file.write(f"{',' if i else '['}\n{json.dumps(row)}")
        file.write("\n]")
    (tmp_path / "qid2id.json").write_text(json.dumps({f"Q{i}": i for i in range(count)}))
    (tmp_path / "kb_image").mkdir()
    (tmp_path / "kb_image" / "Q0_0.jpg").touch()  # a folder without any of the images would be an error
    (tmp_path / "Set_test.json").write_text('[{"id": 0, "mentions": "m", "sentence": "s", "answer": "Q77"}]')
    child = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    kilobytes = int(child.stdout)
    print(f"{kilobytes * 1024 / count:.0f} bytes per entity at the peak")
    assert kilobytes < 85_000  # 46,000 of them for tokenizing any chunk of texts
