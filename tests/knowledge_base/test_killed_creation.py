"""What Lance leaves in a folder if its process is killed before the first manifest, or while a dataset is deleted."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from functools import partial

import pytest
import torch

from mimic_pl.errors import StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.knowledge_base.deleted_entities import DeletedEntities
from mimic_pl.ranking import LanceIndex
from mimic_pl.ranking.lance_dataset import dataset_exists
from mimic_pl.ranking.lance_writer import delete_dataset
from tests.knowledge_base.parts import DESCRIPTION, add, created, record, states_of
from tests.ranking import lance_parts

pytestmark = pytest.mark.own_process

TRANSACTION, MANIFEST = "_transactions/.tmp1syrEL", "_versions/18446744073709551614.manifest#1"
"""Names of unfinished files."""

LEFT = {
    "an empty folder": ["_transactions/"],
    "a transaction": [TRANSACTION],
    "folders": ["_transactions/", "_versions/"],
    "a manifest": [TRANSACTION, MANIFEST],
    "all": ["data/.tmpRFAgge", "_transactions/.tmp7", "_versions/.tmphismRx", MANIFEST],
}


@pytest.fixture(params=LEFT)
def left(request):
    """Leaves a folder as a killed creation does."""

    def leave(folder):
        for name in LEFT[request.param]:
            path = folder / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(b"")
        return folder

    return leave


def unfinished_in(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp") or "#" in path.name]


def test_a_knowledge_base_can_be_created(tmp_path, left):
    left(tmp_path)
    assert not dataset_exists(tmp_path)
    with pytest.raises(StoreError, match="contains no knowledge base"):
        KnowledgeBase(tmp_path)
    kb = KnowledgeBase.create(tmp_path, DESCRIPTION)
    with kb.indexing() as indexing:
        indexing.add([record("A")], states_of([record("A")]))
    kb = KnowledgeBase(tmp_path)
    assert kb.verify() == [] and kb.ids_of(torch.tensor([0])) == ["A"]
    assert not unfinished_in(tmp_path)


def test_an_index_of_an_evaluation_can_be_built(tmp_path, left):
    left(tmp_path / "index")
    with pytest.raises(StoreError, match="contains no entity index"):
        LanceIndex(tmp_path / "index")
    built = lance_parts.content(lance_parts.build(tmp_path / "index"))
    assert built == lance_parts.content(lance_parts.build(tmp_path / "another"))
    assert not unfinished_in(tmp_path)


def test_entities_can_be_deleted(tmp_path, left):
    kb = created(tmp_path, record("A"), record("B"))
    left(tmp_path / "deleted")
    deleted = DeletedEntities(tmp_path)
    assert deleted.rows() == [] and deleted.last() == -1 and deleted.order_of(["B"]) == {}
    assert kb.verify() == []
    kb = add(kb.delete(["A"]), record("C"), record("A"))
    assert deleted.rows() == [("A", 0)] and kb.order_of(["A", "C"]).tolist() == [0, 2]
    assert not unfinished_in(tmp_path)


def test_data_without_a_manifest_is_damage(tmp_path):
    created(tmp_path, record("A"))
    for path in (tmp_path / "_versions").iterdir():
        path.unlink()
    for use in (KnowledgeBase, LanceIndex, lambda folder: KnowledgeBase.create(folder, DESCRIPTION)):
        with pytest.raises(StoreError, match="is damaged: it has data, but no manifest"):
            use(tmp_path)
    assert len(lance_parts.build(tmp_path, 20, rebuild=True)) == 20


class Kill:
    """Raises instead of the n-th change of the file system."""

    def __init__(self, monkeypatch, steps):
        self.left = steps
        for name in ("replace", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, partial(self.step, getattr(os, name)))

    def step(self, function, *args, **kwargs):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return function(*args, **kwargs)


def test_deleting_that_was_killed_goes_on(tmp_path, monkeypatch):
    """Killed before each step, the index is there as a whole or not at all, and can be built."""
    whole = lance_parts.content(lance_parts.build(tmp_path / "new"))
    before = lance_parts.content(lance_parts.build(tmp_path / "old", 20))
    seen = set()
    for steps in range(100):
        folder = tmp_path / str(steps)
        shutil.copytree(tmp_path / "old", folder)
        with monkeypatch.context() as patched:
            kill = Kill(patched, steps)
            with suppress(KeyboardInterrupt):
                delete_dataset(folder)
        seen.add(dataset_exists(folder))
        if dataset_exists(folder):
            assert lance_parts.content(LanceIndex(folder)) == before
            delete_dataset(folder)
        if kill.left:
            break
        if steps % 3 == 1:
            assert created(folder, record("A")).verify() == []
            assert not (folder / "_versions.deleted").exists() and len(lance_parts.data_files(folder)) == 1
        elif steps % 3 == 0:
            assert lance_parts.content(lance_parts.build(folder)) == whole
            assert len(lance_parts.data_files(folder)) == 1
    assert kill.left and seen == {True, False} and not [path for path in folder.rglob("*") if path.suffix != ".lock"]


def test_deleting_leaves_other_data_alone(tmp_path):
    """A folder of the user's that only looks like one of a dataset."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.csv").write_text("id")
    delete_dataset(tmp_path)
    lance_parts.build(tmp_path, 20, rebuild=True)
    delete_dataset(tmp_path / "nowhere")
    assert (tmp_path / "data" / "mine.csv").read_text() == "id"
