"""``mimic-pl kb`` shows, checks and changes a knowledge base."""

from __future__ import annotations

import json

import pytest
import torch

from mimic_pl import Linker
from mimic_pl.cli import main
from mimic_pl.knowledge_base import KnowledgeBase
from tests.knowledge_base.parts import created, record
from tests.ranking.test_lance_index import flip_bit

pytestmark = pytest.mark.own_process


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns its exit code, output and errors."""

    def run(*args):
        try:
            code = main(["kb", *map(str, args)]) or 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_info(tmp_path, run):
    created(tmp_path, record("A", type="person"), record("B"), dtype="bfloat16").delete(["B"])
    code, out, _ = run("info", tmp_path)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0 and lines["entities"] == "1" and lines["columns"] == "id, name, group, type"
    assert lines["states"].startswith("bfloat16, ") and "text template  {name}" in out
    first = KnowledgeBase(tmp_path).versions()[-2]
    code, out, _ = run("info", tmp_path, "--version", first.number)
    assert "entities       2" in out
    code, _, err = run("info", tmp_path / "nowhere")
    assert code == 7 and "contains no knowledge base" in err


def test_delete_and_compact(tmp_path, run):
    folder, ids = tmp_path / "kb", tmp_path / "ids.txt"
    created(folder, *map(record, ["A", "B", "C", "D e"]))
    ids.write_text("D e\n\nA\n")
    code, out, _ = run("delete", folder, "C", "--file", ids)
    assert code == 0 and out.startswith("1 entities in ") and "(3 deleted)" in out
    assert KnowledgeBase(folder).ids_of(torch.tensor([1])) == ["B"]
    code, _, err = run("delete", folder, "C")
    assert code == 4 and "no entity 'C'" in err
    assert run("delete", folder)[0] == 2 and run("delete", folder, "--file", tmp_path / "no.txt")[0] == 4
    code, out, _ = run("compact", folder, "--keep_hours", 0)
    assert code == 0 and out.startswith("1 entities in ")
    assert len(KnowledgeBase(folder).versions()) == 1
    code, _, err = run("compact", folder, "--keep_hours", -1)
    assert code == 3 and "keep_hours is -1" in err


def test_verify(tmp_path, run):
    created(tmp_path, *[record(f"Q{n}", n, text=f"the text {n}.") for n in range(30)])
    code, out, _ = run("verify", tmp_path)
    assert (code, out) == (0, f"Version {KnowledgeBase(tmp_path).version} with 30 entities is intact.\n")
    (path,) = (tmp_path / "data").iterdir()
    flip_bit(path, path.read_bytes().index(b"the text 7.") + 9)
    code, out, _ = run("verify", tmp_path)
    assert code == 7 and "The entity 'Q7' with the order number 7 is damaged" in out and "in 1 places" in out
    assert "Update or delete damaged entities by id" in out
    code, out, _ = run("delete", tmp_path, "Q7")
    assert code == 0 and out.startswith("29 entities in ") and run("verify", tmp_path)[0] == 0


def test_help_of_an_action(run):
    code, out, _ = run("compact", "--help")
    assert code == 0 and "--keep_hours" in out
    code, out, _ = run("--help")
    assert all(f"    {action} " in out for action in ("info", "verify", "compact", "delete", "add", "update"))


def test_the_model_of_a_knowledge_base_must_be_known(tmp_path, run, capsys):
    folder = tmp_path / "kb"
    created(folder, record("A"))
    mentions = write(tmp_path / "mentions.jsonl", [{"mention": "a"}])
    code, _, err = run("add", folder, write(tmp_path / "new.jsonl", [{"id": "B", "name": "b"}]))
    assert code == 3 and "does not say where its model is. Name it: --model RUN" in err
    with pytest.raises(SystemExit, match="3"):
        main(["link", str(mentions), "--kb", str(folder), "--out", str(tmp_path / "links.jsonl")])
    assert "Name it: --model RUN" in capsys.readouterr().err


def write(path, entities):
    path.write_text("".join(json.dumps(entity) + "\n" for entity in entities))
    return path


def test_add_update_and_delete_by_file(trained, tmp_path, run):
    entities = [{"id": f"Q{n}", "name": f"name {n}", "attr": f"attribute {n % 3}"} for n in range(8)]
    folder = tmp_path / "kb"
    linker = Linker.from_pretrained(trained.run)
    linker.index(entities[:5], folder, show_progress_bar=False)
    options = ("--format", "plain", "--image_folder", tmp_path)
    code, out, err = run("add", folder, write(tmp_path / "new.jsonl", entities[5:]), *options)
    assert code == 0 and "8 entities in" in out and "(3 added)" in out, err
    changed = {**entities[2], "name": "another name"}
    code, out, err = run("update", folder, write(tmp_path / "changed.jsonl", [changed]), "--model", trained.run)
    assert code == 0 and "8 entities in" in out and "(updated)" in out, err
    assert run("delete", folder, "Q0")[0] == 0
    expected = [changed if entity["id"] == "Q2" else entity for entity in entities[1:]]
    linker.index(expected, tmp_path / "anew", show_progress_bar=False)
    mention = {"mention": "name", "sentence": "another name"}
    scores = []
    for path in (folder, tmp_path / "anew"):
        assert KnowledgeBase(path).verify() == []
        links = linker.with_knowledge_base(path).link(mention, top_k=None)
        scores.append([(link.entity.id, link.score) for link in links])
    assert scores[0] == scores[1] and len(scores[0]) == 7
    code, _, err = run("add", folder, tmp_path / "changed.jsonl")
    assert code == 4 and "already has 'Q2'" in err
    code, _, err = run("update", folder, write(tmp_path / "none.jsonl", [{"id": "Z", "name": "z", "attr": ""}]))
    assert code == 4 and "'Z'" in err
