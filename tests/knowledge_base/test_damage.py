"""Damage is found by verification, which names the entities, and never shows as a traceback of the engine."""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest
import torch

from mimic_pl.errors import DataError, StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.ranking import Ranker
from tests.knowledge_base.parts import MENTIONS, add, content, created, record, update
from tests.ranking.tables import table_matcher
from tests.ranking.test_lance_index import flip_bit

pytestmark = pytest.mark.own_process


def rank(kb):
    mentions = {"text": {"row": torch.arange(MENTIONS)}}
    return Ranker(5)(table_matcher({"text": None}), mentions, kb.index).top_entities.tolist()


def test_damaged_rows_are_named(tmp_path):
    kb = created(tmp_path, *[record(f"Q{n}", n, text=f"the text {n}.") for n in range(20)])
    (path,) = (tmp_path / "data").iterdir()
    whole = path.read_bytes()
    flip_bit(path, whole.index(b"the text 7.") + 9)
    (problem,) = KnowledgeBase(tmp_path).verify()
    assert problem == "The entity 'Q7' with the order number 7 is damaged: its record fails the checksum."
    path.write_bytes(whole.replace(b"the text 7.", b"the t\xffxt 7."))
    (problem,) = KnowledgeBase(tmp_path).verify()
    assert problem.startswith("The entity 'Q7' with the order number 7 is damaged: its record cannot be read: ")
    assert ".rs" not in problem
    path.write_bytes(whole)
    assert KnowledgeBase(tmp_path).verify() == []
    state = kb.index.select(torch.tensor([3])).states["text"]["column"].numpy().tobytes()
    flip_bit(path, whole.index(state) + 2)
    (problem,) = KnowledgeBase(tmp_path).verify()
    assert problem == "The entity 'Q3' with the order number 3 is damaged: its states fail the checksum."
    with pytest.raises(StoreError, match="the entity 'Q3' with the order number 3 fails its checksum"):
        rank(KnowledgeBase(tmp_path))
    repaired = update(KnowledgeBase(tmp_path), record("Q3", 3, text="the text 3."))
    assert repaired.verify() == [] and rank(repaired) == rank(
        created(tmp_path / "new", *repaired.entities(torch.arange(20)))
    )


def flipped(folder, content, place):
    """Flip a bit of the only data file of a knowledge base, some bytes after some content."""
    (path,) = (folder / "data").iterdir()
    flip_bit(path, path.read_bytes().index(content) + place)


def invalid(folder, content, place):
    """Replace a byte by one that no text contains."""
    (path,) = (folder / "data").iterdir()
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + place] = 0xFF
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", [flipped, invalid])
@pytest.mark.parametrize("content_of_q7", [b"the text of 7", b"name of Q7", b"Q7.jpg"])
def test_a_damaged_record_can_be_updated_or_deleted(tmp_path, damage, content_of_q7):
    entities = [record(f"Q{n}", n, text=f"the text of {n}") for n in range(10)]
    created(tmp_path / "a", *entities)
    damage(tmp_path / "a", content_of_q7, len(content_of_q7) - 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    damaged = KnowledgeBase(tmp_path / "a")
    assert ["'Q7' with the order number 7" in problem for problem in damaged.verify()] == [True]
    assert add(damaged, record("new")).ids_of(torch.tensor([3])) == ["Q3"]
    with pytest.raises(DataError, match="already has 'Q7'"):
        add(damaged, record("Q7"))
    updated = update(update(damaged, record("Q2", 5)), entities[7])
    assert updated.verify() == [] and updated.entities(torch.tensor([7])) == [entities[7]]
    deleted = KnowledgeBase(tmp_path / "b").delete(["Q4", "Q7"])
    assert deleted.verify() == [] and len(deleted) == 8
    assert add(deleted.compact(0), entities[7]).order_of(["Q7"]).tolist() == [7], "the number was intact"


def test_an_entity_whose_order_number_is_damaged_gets_a_new_one(tmp_path):
    """Neither its record nor its states have the right checksum: both cover the number."""
    kb = created(tmp_path, *[record(f"Q{n}", n) for n in range(100, 110)], record("last"))
    numbers = np.arange(11, dtype=np.int64).tobytes()
    (path,) = (tmp_path / "data").iterdir()
    if path.read_bytes().find(numbers) < 0:
        pytest.skip("this version of Lance encodes the order numbers")
    flipped(tmp_path, numbers, 8 * 3 + 2)
    kb = KnowledgeBase(tmp_path)
    assert len(kb.verify()) == 2
    with pytest.raises(StoreError, match="'Q103' cannot be updated: the order number is damaged"):
        update(kb, record("Q103"))
    repaired = add(kb.delete(["Q103"]), record("Q103"))
    assert repaired.verify() == [] and repaired.order_of(["Q103", "last"]).tolist() == [11, 10]


def test_an_id_that_has_become_that_of_another_entity(tmp_path):
    entities = [record(name) for name in ("first", "the id A", "the id B", "last")]
    created(tmp_path, *entities)
    (path,) = (tmp_path / "data").iterdir()
    path.write_bytes(path.read_bytes().replace(b"the id Athe id B", b"the id Athe id A"))
    kb = KnowledgeBase(tmp_path)
    assert "2 rows have the id 'the id A'." in kb.verify()
    with pytest.raises(StoreError, match="'the id A' cannot be updated: .* several rows have the id"):
        update(kb, entities[1])
    repaired = add(kb.delete(["the id A"]), *entities[1:3])
    assert repaired.verify() == [] and sorted(content(repaired)) == sorted(entity.id for entity in entities)


def test_verification_reads_in_parts_of_bounded_size(tmp_path, monkeypatch):
    kb = created(tmp_path, *[record(f"Q{n}", n, text=f"the text of {n}.") for n in range(50)])
    flipped(tmp_path, b"the text of 33.", 12)
    found = kb.verify()
    for size in (1, 7, 20 * kb.bytes_per_entity):
        monkeypatch.setattr("mimic_pl.knowledge_base.verification._BYTES_AT_ONCE", size)
        assert (
            kb.verify()
            == found
            == ["The entity 'Q33' with the order number 33 is damaged: its record fails the checksum."]
        )


def test_missing_and_truncated_files(tmp_path):
    kb = add(created(tmp_path, record("A"), record("B")), record("C"))
    paths = sorted((tmp_path / "data").iterdir())
    for path in paths:
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        assert any(f"{path.name} has {len(whole) // 2} bytes instead of" in problem for problem in kb.verify())
        path.unlink()
        assert any(f"{path.name} is missing" in problem for problem in kb.verify())
        path.write_bytes(whole)
    assert kb.verify() == []


def test_one_flipped_byte(tmp_path):
    """Anywhere in the folder: verification finds it, or nothing has changed."""
    kb = update(created(tmp_path, *[record(f"Q{n}", n) for n in range(12)]).delete(["Q2"]), record("Q4", 6))
    add(kb, record("Q2", 1)).compact(keep_hours=1).delete(["Q9"])
    whole, top, rng = content(KnowledgeBase(tmp_path)), rank(KnowledgeBase(tmp_path)), random.Random(0)
    found = harmless = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.suffix in (".lance", ".manifest", ".arrow")):
        before = path.read_bytes()
        for place in [rng.randrange(len(before)) for _ in range(5)]:
            flip_bit(path, place)
            try:
                kb = KnowledgeBase(tmp_path)
                if kb.verify():
                    found += 1
                else:
                    assert (content(kb), rank(kb)) == (whole, top), (path, place)
                    harmless += 1
            except StoreError:
                found += 1
            path.write_bytes(before)
    print(f"{found} found, {harmless} harmless")
    assert found > 12
