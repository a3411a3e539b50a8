"""`mimic-pl index` and `mimic-pl link`: files in, files out, exit codes."""

import csv
import json

import pytest

from tests import tiny
from tests.launch import RunningCommand, needs_fork, run

pytestmark = needs_fork


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """A knowledge base in CSV with images, and the knowledge base in a folder."""
    folder = tmp_path_factory.mktemp("link")
    tiny.write_set(folder / "Tiny")
    with (folder / "kb.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "name", "attr", "type", "image"])
        for entity in json.loads((folder / "Tiny" / "kb_entity.json").read_text()):
            image = f"Tiny/kb_image/{entity['image_list'][0]}" if entity["image_list"] else ""
            rows.writerow([entity["qid"], entity["entity_name"], entity["attr"], entity["attr"][2:], image])
    run(["index", "kb.csv", "--model", str(trained.run), "--out", "kb"], folder)
    return folder


def command(arguments, folder):
    running = RunningCommand(["link", *arguments], folder)
    return running.exit_codes()[0], running.output()


def mentions(folder, name, lines):
    (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return name


def test_links_are_written_in_the_format_of_the_suffix(folder):
    given = [
        {"id": "a", "mention": "jaguar", "sentence": "the jaguar runs", "image": "Tiny/mention_images/test0.jpg"},
        {"id": "b", "sentence": "amazon and phoenix", "spans": [[0, 6], [11, 18]], "entity_type": "river"},
        {"id": "c", "sentence": "nothing"},
        {"id": "d", "mention": "jaguar", "image": "none.jpg", "filter": "name = 'nobody'"},
    ]
    name = mentions(folder, "m.jsonl", given)
    code, output = command([name, "--kb", "kb", "--out", "links.jsonl", "--top_k", "3"], folder)
    assert code == 0, output
    for line in ("linked", "NIL", "failed", "image missing", "Written to links.jsonl"):
        assert line in output
    links = [json.loads(line) for line in (folder / "links.jsonl").read_text().splitlines()]
    assert [link.get("mention") for link in links] == ["jaguar", "amazon", "phoenix", None, "jaguar"]
    assert [len(link["candidates"]) for link in links] == [3, 3, 3, 0, 0]
    assert [link["nil"] for link in links] == [False, False, False, False, True]
    assert "line 3" in links[3]["error"] and links[4]["error"] is None

    code, output = command([name, "--kb", "kb", "--out", "links.csv", "--top_k", "3", "--strict"], folder)
    assert code == 4, output
    with (folder / "links.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["entity"]]
    assert [row["entity"] for row in rows] == [c["id"] for link in links for c in link["candidates"]]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["m1.jsonl", "--kb", "nowhere", "--out", "l.jsonl"], 7, "nowhere contains no knowledge base"),
        (["m1.jsonl", "--kb", "kb", "--out", "l.jsonl", "--top_k", "0"], 3, "top_k is 0"),
        (["m1.jsonl", "--kb", "kb", "--out", "l.jsonl", "--filter", "colour = 1"], 4, "colour"),
        (["m1.jsonl", "--kb", "kb", "--out", "l.jsonl", "--model", "nowhere"], None, "nowhere"),
        (["bad.jsonl", "--kb", "kb", "--out", "l.jsonl"], 4, "failed"),
    ],
)
def test_faults(folder, arguments, code, message):
    mentions(folder, "m1.jsonl", [{"mention": "jaguar"}])
    mentions(folder, "bad.jsonl", [{"mention": "jaguar", "candidates": ["Q99"]}])
    found, output = command(arguments, folder)
    assert found == code or (code is None and found in (3, 5)), output
    assert message in output and "Traceback" not in output


def test_proven_links_are_counted(folder):
    name = mentions(folder, "m2.jsonl", [{"mention": "jaguar", "sentence": "the jaguar runs"}] * 2)
    options = ["--kb", "kb", "--out", "proven.jsonl", "--certify"]
    code, output = command([name, *options, "--retriever", "lance", "--candidates", "2"], folder)
    assert code == 0, output
    links = [json.loads(line) for line in (folder / "proven.jsonl").read_text().splitlines()]
    proven = sum(link["certified"] for link in links)
    (row,) = (line for line in output.splitlines() if "proven first of all" in line)
    assert f" {proven} " in row
    code, output = command([name, *options[:3], "all.jsonl", "--certify"], folder)
    assert code == 0 and "100.0%" in next(line for line in output.splitlines() if "proven first of all" in line)


def test_a_retriever_is_suggested_for_many_entities(folder, monkeypatch):
    name = mentions(folder, "m3.jsonl", [{"mention": "jaguar", "sentence": "the jaguar runs"}])
    for limit, options, suggested in ((12, [], False), (11, [], True), (11, ["--retriever", "lance"], False)):
        monkeypatch.setattr("mimic_pl.cli.linking_options.EXACT_UP_TO", limit)
        code, output = command([name, "--kb", "kb", "--out", f"{limit}{len(options)}.jsonl", *options], folder)
        assert code == 0 and ("All 12 entities are ranked for each mention. --retriever lance" in output) is suggested


def test_index_refuses_what_it_cannot_use(folder, trained):
    (folder / "twice.csv").write_text("id,name,attr\nQ1,a,b\nQ1,c,d\n")
    (folder / "empty.csv").write_text("id,name,attr\n")
    for name, message in (("twice.csv", "Q1"), ("empty.csv", "no entities"), ("none.csv", "does not exist")):
        running = RunningCommand(["index", name, "--model", str(trained.run), "--out", name[:-4]], folder)
        assert running.exit_codes() == [4], running.output()
        assert message in running.output()
