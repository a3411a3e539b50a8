"""Adding, updating, deleting, versions, statistics, indexing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mimic_pl.errors import ConfigError, DataError, StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.knowledge_base.writer import Writer
from mimic_pl.ranking import IndexBuilder, LanceIndex
from mimic_pl.ranking.lance_dataset import COMPLETE
from mimic_pl.records import Entity
from tests.knowledge_base.parts import DESCRIPTION, add, content, created, record, states_of, update
from tests.launch import FORK, needs_fork
from tests.ranking.lance_parts import build

pytestmark = pytest.mark.own_process


def ids_in(kb):
    return sorted(content(kb))


def test_a_change_returns_the_next_version_and_readers_keep_theirs(tmp_path):
    empty = created(tmp_path)
    assert len(empty) == 0 and ids_in(empty) == [] and empty.order_of([]).tolist() == []
    first = add(empty, record("A", 1), record("B", 2, type="city"))
    opened_before = KnowledgeBase(tmp_path)
    before = content(first)
    second = update(add(first, record("C", 3)), record("A", 4)).delete(["B"])
    assert ids_in(second) == ["A", "C"] and second.entities(torch.tensor([0])) == [record("A", 4)]
    assert content(first) == content(opened_before) == before and len(first) == 2 and ids_in(empty) == []
    assert content(KnowledgeBase(tmp_path, version=first.version)) == before
    entities = {version.number: version.entities for version in second.versions()}
    assert (entities[first.version], entities[second.version], entities[empty.version]) == (2, 2, 0)
    assert sorted(version.time for version in second.versions()) == [version.time for version in second.versions()]
    with pytest.raises(StoreError, match="was opened for reading"):
        KnowledgeBase(tmp_path, version=first.version).delete(["A"])
    with pytest.raises(StoreError, match="has no version 99. Its newest version is"):
        KnowledgeBase(tmp_path, version=99)


def test_a_writer_with_an_old_version_changes_the_newest(tmp_path):
    first = created(tmp_path, record("A"))
    add(first, record("B"))
    assert ids_in(add(first, record("C"))) == ["A", "B", "C"]


def test_a_deleted_entity_gets_its_order_number_back(tmp_path):
    kb = created(tmp_path, *map(record, "ABCD")).delete(["B", "D"])
    kb = add(kb.compact(0), record("E"), record("B", 5), record("F"))
    assert {id: number for id, (number, _, _) in content(kb).items()} == {"A": 0, "B": 1, "C": 2, "E": 4, "F": 5}
    kb = add(kb.delete(["B"]), record("B"), record("D"))
    assert kb.order_of(["B", "D"]).tolist() == [1, 3]


def test_given_order_numbers(tmp_path):
    kb = add(created(tmp_path), *map(record, "ABC"), order=torch.tensor([7, 2, 40]))
    assert kb.order_of(["A", "B", "C"]).tolist() == [7, 2, 40]
    kb = add(kb, record("D")).delete(["A"])
    assert kb.order_of(["D"]).tolist() == [41]
    for order, words in [
        ([2, 50], "order number 2 belongs to another entity"),
        ([50, 50], "order number 50 belongs to another entity"),
        ([7, 50], "'E' cannot get the order number 7, which was 'A''s before"),
    ]:
        with pytest.raises(DataError, match=words):
            add(kb, record("E"), record("F"), order=torch.tensor(order))
    with pytest.raises(DataError, match="'A' cannot get the order number 8, which was 7 before"):
        add(kb, record("A"), order=torch.tensor([8]))
    for order in (torch.tensor([1.0]), torch.tensor([-1]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="order is .*: one number from 0 for each of 1 entities"):
            add(kb, record("E"), order=order)
    assert add(kb, record("A"), order=torch.tensor([7])).order_of(["A"]).tolist() == [7]


def test_ids_are_checked_before_anything_changes(tmp_path):
    kb = created(tmp_path, record("A"), record("B"))
    for change, words in [
        (lambda: add(kb, record("C"), record("A")), "already has 'A'. Update an entity to change it"),
        (lambda: add(kb, record("C"), record("C")), "given twice"),
        (lambda: update(kb, record("A", 3), record("Z")), "no entity 'Z'"),
        (lambda: update(kb, record("A", 3), record("A", 4)), "given twice"),
        (lambda: kb.delete(["A", "Z"]), "no entity 'Z'"),
        (lambda: kb.delete(["A", "A"]), "given twice"),
        (lambda: add(kb, record("\ud800")), "half of a character"),
        (lambda: add(kb, record("C", text="\udc00")), "half of a character"),
        (lambda: kb.order_of(["A", "\ud800"]), "no entity"),
        (lambda: kb.entities(torch.tensor([5])), "order number 5"),
        (lambda: kb.add([{"id": "Q"}], {}), "has no 'name'"),
    ]:
        with pytest.raises(DataError, match=words):
            change()
    made = states_of([record("C")])
    made["text"]["column"][0, 0] = torch.nan
    with pytest.raises(DataError, match="states of 'C' are not finite"):
        kb.add([record("C")], made)
    newest = KnowledgeBase(tmp_path)
    assert content(newest) == content(kb)
    assert add(newest).version == newest.delete([]).version == newest.version, "nothing to do is no commit"


def test_another_model_is_refused_and_told(tmp_path):
    kb = created(tmp_path, record("A"), dtype="bfloat16")
    assert kb.dtype == "bfloat16" and kb.description["text template"] == "{name}"
    other = {**DESCRIPTION, "model": "1" * 64, "text template": "{desc}"}
    with pytest.raises(StoreError, match="built for another model and another text template \\('{name}', now '{desc}'"):
        KnowledgeBase(tmp_path, expects=other)
    with pytest.raises(StoreError, match="another dtype \\('bfloat16', now 'int8'\\)"):
        KnowledgeBase.create(tmp_path, DESCRIPTION, "int8")
    assert len(KnowledgeBase.create(tmp_path, DESCRIPTION, "bfloat16")) == 1
    for made in ({"vision": {"column": torch.zeros(1, 5)}}, {"text": {"column": torch.zeros(1, 6)}}):
        with pytest.raises(StoreError, match="of another model or dtype .* differ"):
            kb.add([record("B")], made)
    with pytest.raises(StoreError, match="contains no knowledge base"):
        KnowledgeBase(tmp_path / "nowhere")


def test_images_that_are_no_files_are_left_out(tmp_path):
    entity = Entity("A", "a", {"group": "0"}, ("a.jpg", b"\xff\xd8", Path("b.jpg"), np.zeros((2, 2, 3), np.uint8)))
    assert created(tmp_path, entity).entities(torch.tensor([0])) == [
        Entity("A", "a", {"group": "0"}, ("a.jpg", "b.jpg"))
    ]


def test_statistics_belong_to_versions(tmp_path):
    first = created(tmp_path, record("A"))
    assert first.statistics("terms") is None
    frequencies = np.arange(5, dtype=np.int64)
    second = add(first, record("B"), statistics={"terms": {"frequencies": frequencies, "documents": 2}})
    third = second.set_statistics("centre", {"mean": [0.5, 1.5]})
    fourth = third.delete(["A"], statistics={"terms": {"frequencies": frequencies[:1], "documents": 1}})
    assert first.statistics("terms") is None and third.version == second.version + 1
    for kb in (second, third):
        kept = kb.statistics("terms")
        assert kept["documents"] == 2 and np.array_equal(kept["frequencies"], frequencies)
    assert fourth.statistics("terms")["documents"] == 1 and fourth.statistics("centre") == {"mean": [0.5, 1.5]}
    other = {"other": {"n": 1}}
    assert third.add([], {}, statistics=other).statistics("other") == {"n": 1}
    assert third.delete([], statistics={"other": {"n": 2}}).statistics("other") == {"n": 2}
    fourth = fourth.set_statistics("centre", {"mean": [0.5, 1.5]})
    with pytest.raises(DataError):  # nothing is kept with a change that fails
        third.delete(["Z"], statistics={"terms": {"documents": 7}})
    compacted = fourth.compact(0)
    assert compacted.statistics("terms")["documents"] == 1 and compacted.statistics("centre") == {"mean": [0.5, 1.5]}
    assert len(list((tmp_path / "statistics").iterdir())) == 3
    (path,) = (tmp_path / "statistics").glob("terms*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="terms.v.*, statistics of the knowledge base, cannot be read"):
        compacted.statistics("terms")
    assert any("terms.v" in problem for problem in compacted.verify())


def test_statistics_of_a_commit_that_never_happened_are_not_read(tmp_path):
    """As after a kill between the two."""
    kb = created(tmp_path, record("A")).set_statistics("terms", {"documents": 1})
    (path,) = (tmp_path / "statistics").iterdir()
    path.with_name(path.name.replace(f".v{kb.version}.", f".v{kb.version + 1}.")).write_bytes(path.read_bytes())
    following = add(kb, record("B"))
    assert following.statistics("terms") == {"documents": 1} and len(list(path.parent.iterdir())) == 1


def test_a_creation_that_was_killed_in_the_middle(tmp_path):
    """Of its two commits, the second makes it a knowledge base that can be opened."""
    created(tmp_path)
    with Writer(tmp_path, 0.0) as writer:
        writer.configure(COMPLETE, None)
    with pytest.raises(StoreError, match="contains no knowledge base"):
        KnowledgeBase(tmp_path)
    assert ids_in(created(tmp_path, record("A"))) == ["A"]


def test_an_interrupted_indexing_goes_on(tmp_path):
    entities = [record(f"Q{n}", n) for n in range(20)]
    kb = KnowledgeBase.create(tmp_path, DESCRIPTION)
    with pytest.raises(KeyboardInterrupt), kb.indexing() as indexing:
        indexing.add(entities[:5], states_of(entities[:5]))
        indexing.flush()
        indexing.add(entities[5:8], states_of(entities[5:8]))
        raise KeyboardInterrupt
    for refused in (lambda: KnowledgeBase(tmp_path), lambda: LanceIndex(tmp_path)):
        with pytest.raises(StoreError, match="is unfinished: 5 entities are written"):
            refused()
    with pytest.raises(StoreError, match="another model"):
        KnowledgeBase.create(tmp_path, {**DESCRIPTION, "model": "b"})
    resumed = KnowledgeBase.create(tmp_path, DESCRIPTION)
    with pytest.raises(StoreError, match="unfinished: its indexing was interrupted"):
        add(resumed, record("Z"))
    with resumed.indexing() as indexing:
        with pytest.raises(DataError, match="already has 'Q3', with other texts or images"):
            indexing.missing([record("Q3", 4)])
        missing = indexing.missing(entities)
        assert missing == entities[5:]
        for entity in missing:
            indexing.add([entity], states_of([entity]))
        indexing.set_statistics("terms", {"documents": 20})
    whole = KnowledgeBase(tmp_path)
    assert content(whole) == content(created(tmp_path / "whole", *entities))
    assert whole.statistics("terms") == {"documents": 20}
    with whole.indexing() as indexing:  # more of them: readers are not shut out
        indexing.add([record("more")], states_of([record("more")]))
        indexing.flush()
        assert len(KnowledgeBase(tmp_path)) == 21


def test_compaction_merges_files_and_removes_old_versions(tmp_path):
    first = kb = created(tmp_path, record("Q0"))
    for n in range(1, 8):
        kb = add(kb, record(f"Q{n}", n))
    kb = update(kb.delete(["Q3"]), record("Q2", 5))
    before = content(kb)
    compacted = kb.compact(keep_hours=1)
    assert content(compacted) == before and compacted.parts == 1 and kb.parts > 5
    assert content(first) == {"Q0": before["Q0"]}, "readers keep young versions"
    with pytest.raises(ConfigError, match="keep_hours is -1"):
        kb.compact(-1)
    last = compacted.compact(keep_hours=0)
    assert content(last) == before and len(last.versions()) == 1
    assert len(list((tmp_path / "data").iterdir())) == 1
    reader = KnowledgeBase(tmp_path)
    add(reader, record("Z")).delete(["Q0"]).compact(0)
    for read in (
        lambda: reader.entities(torch.tensor([1])),
        lambda: reader.index.select(torch.tensor([1])),
        lambda: reader.known(["Q1"]),
        lambda: reader.where("name like 'Q%'"),
        lambda: reader.order_of(["Q1"]),
    ):
        with pytest.raises(StoreError, match="removed|has no version"):
            read()
    (problem,) = reader.verify()
    assert f"Version {reader.version} of" in problem and "was removed by a compaction" in problem


def test_the_index_of_an_evaluation_is_a_knowledge_base_that_stays_as_it_is(tmp_path):
    """The same rows and the same reader."""
    index = build(tmp_path, 30)
    kb = KnowledgeBase(tmp_path)
    assert kb.columns == ("id", "name", "attr") and kb.where("attr = 'attribute 7'").tolist() == [7]
    assert kb.verify() == [] and torch.equal(kb.index.order, index.order)
    for change in (lambda: kb.delete(["Q1"]), lambda: kb.compact(), lambda: kb.indexing()):
        with pytest.raises(StoreError, match="index of an evaluation and stays as it is"):
            change()


def test_the_class_path_of_index_builder_in_configurations_and_checkpoints():
    from mimic_pl.construction import build as rebuild

    for path in ("mimic_pl.ranking.IndexBuilder", IndexBuilder().description["class_path"]):
        assert isinstance(rebuild({"class_path": path, "init_args": {"dtype": "int8"}}), IndexBuilder)


@needs_fork
def test_a_second_writer_waits_or_is_refused(tmp_path):
    assert FORK is not None
    receiver, sender = FORK.Pipe()

    def hold():
        kb = KnowledgeBase.create(tmp_path, DESCRIPTION)
        with kb.indexing() as indexing:
            indexing.add([record("A")], states_of([record("A")]))
            sender.send("writing")
            sender.recv()
            time.sleep(0.3)

    process = FORK.Process(target=hold)
    process.start()
    assert receiver.recv() == "writing"
    kb = KnowledgeBase.create(tmp_path, DESCRIPTION, wait=0.0)
    with pytest.raises(StoreError, match="Another process is writing to"):
        add(kb, record("B"))
    receiver.send("end, in a moment")
    assert ids_in(add(KnowledgeBase.create(tmp_path, DESCRIPTION, wait=60.0), record("B"))) == ["A", "B"]
    process.join()


MEASURE = """
import resource, sys, time
import torch
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.ranking import LanceIndex, Ranker
from mimic_pl.ranking.lance_dataset import lance

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1000

import lance as library
before, start = resident(), time.perf_counter()
kb = KnowledgeBase(sys.argv[1])
index = kb.index
seconds = time.perf_counter() - start
assert len(kb) == len(index) == int(sys.argv[2])
ids = kb.ids_of(torch.tensor([5, 3]))
assert kb.order_of(ids).tolist() == [5, 3]
print(seconds, resident() - before)
"""


def measure_opening(folder, entities):
    """Megabytes that an open knowledge base takes in a new process, after some look-ups; prints the time, too."""
    command = [sys.executable, "-c", MEASURE, str(folder), str(entities)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    print(f"{entities:,} entities open in {seconds * 1000:.0f} ms, with {megabytes:.0f} MB")
    return megabytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_million_entities_open_in_200_megabytes(tmp_path):
    kb, at_once = KnowledgeBase.create(tmp_path, DESCRIPTION), 20_000
    with kb.indexing() as indexing:
        for start in range(0, 1_000_000, at_once):
            entities = [record(f"Q{n}", n, type="person") for n in range(start, start + at_once)]
            indexing.add(entities, states_of(entities))
    megabytes = measure_opening(tmp_path, 1_000_000)
    kb = KnowledgeBase(tmp_path)
    for name, change in {
        "add one": lambda kb: add(kb, record("new")),
        "update one": lambda kb: update(kb, record("Q77")),
        "delete one": lambda kb: kb.delete(["Q500000"]),
        "add 1,000": lambda kb: add(kb, *[record(f"N{n}", n) for n in range(1000)]),
        "delete 1,000": lambda kb: kb.delete([f"N{n}" for n in range(1000)]),
        "compact": lambda kb: kb.compact(),
    }.items():
        start = time.perf_counter()
        kb = change(kb)
        print(f"{name}: {1000 * (time.perf_counter() - start):.0f} ms")
    assert len(kb) == 1_000_000
    assert megabytes < 200
