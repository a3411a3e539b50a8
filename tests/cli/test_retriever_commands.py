"""`mimic-pl index`, `link` and `recall` with a retriever."""

import json
import shlex
from itertools import pairwise

import pytest
import yaml

from tests import tiny
from tests.launch import RunningCommand, needs_fork, run
from tests.readme import readme_block

pytestmark = needs_fork


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """Mentions, and a knowledge base that was indexed with a retriever."""
    folder = tmp_path_factory.mktemp("retriever")
    tiny.write_set(folder / "Tiny", entities=60, splits={"test": 20})
    run(["index", "Tiny/kb_entity.json", *options(trained), "--out", "kb", "--retriever", "lance"], folder)
    return folder


def options(trained):
    return ["--model", str(trained.run), "--image_folder", "Tiny/kb_image"]


def command(arguments, folder):
    running = RunningCommand(arguments, folder)
    return running.exit_codes()[0], running.output()


def test_the_lines_of_the_readme(tmp_path, trained):
    tiny.write_set(tmp_path / "Tiny", entities=60, splits={"test": 20})
    run(["convert", "kb", "Tiny/kb_entity.json", "my_kb.csv", "--image_folder", "Tiny/kb_image"], tmp_path)
    given = ["Tiny/Tiny_test.json", "mentions.csv", "--image_folder", "Tiny/mention_images"]
    run(["convert", "mentions", *given], tmp_path)
    (tmp_path / "lightning_logs").mkdir()
    (tmp_path / "lightning_logs" / "version_0").symlink_to(trained.run)
    lines = readme_block("mimic-pl index my_kb.csv --model lightning_logs/version_0 --out my_kb --retriever lance")
    for line in lines.strip().splitlines():
        program, *arguments = shlex.split(line)
        code, output = command(arguments, tmp_path)
        assert program == "mimic-pl" and code == 0, output
    links = [json.loads(line) for line in (tmp_path / "links.jsonl").read_text().splitlines()]
    assert len(links) == 20 and all(isinstance(one["certified"], bool) for one in links)
    assert "proven first of all entities" in output


def test_links_through_a_retriever_have_the_exact_scores(folder):
    assert any((folder / "kb" / "candidates" / "lance" / "data").iterdir())
    given = ["Tiny/Tiny_test.json", "--kb", "kb", "--image_folder", "Tiny/mention_images", "--top_k", "5"]
    code, output = command(["link", *given, "--out", "exact.jsonl"], folder)
    assert code == 0, output
    code, output = command(
        ["link", *given, "--out", "fast.jsonl", "--retriever", "lance", "--candidates", "25"], folder
    )
    assert code == 0, output
    exact, fast = (
        [json.loads(line)["candidates"] for line in (folder / name).read_text().splitlines()]
        for name in ("exact.jsonl", "fast.jsonl")
    )
    assert len(fast) == 20 and all(len(links) == 5 for links in fast)
    assert sum(one[0] == other[0] for one, other in zip(exact, fast, strict=True)) >= 15


def test_recall_chooses_a_number_of_candidates(folder):
    given = ["recall", "Tiny/Tiny_test.json", "--kb", "kb", "--image_folder", "Tiny/mention_images"]
    measuring = [*given, "--retriever", "lance", "--ks", "[2,30,59]", "--out", "recall"]
    code, output = command([*measuring, "--wanted", "0.9"], folder)
    assert code == 0, output
    found = json.loads((folder / "recall" / "recall.json").read_text())
    measured = found["measured"]
    assert [row["k"] for row in measured] == [2, 30, 59] and found["entities"] == 60
    assert all(one["ten"] <= other["ten"] for one, other in pairwise(measured))
    assert measured[-1]["first"] == 1 and measured[-1]["candidates"] >= 59
    chosen = next(row["k"] for row in measured if row["first"] >= 0.9)
    assert yaml.safe_load((folder / "recall" / "retriever.yaml").read_text()) == {"engine": "lance", "k": chosen}
    assert found["chosen"] == chosen and f"{chosen} candidates per channel are enough" in output
    assert (folder / "recall" / "recall.png").read_bytes().startswith(b"\x89PNG")
    linking = ["link", "Tiny/Tiny_test.json", "--kb", "kb", "--out", "chosen.jsonl"]
    code, output = command([*linking, "--retriever", "recall/retriever.yaml"], folder)
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["link", "m.jsonl", "--out", "l.jsonl", "--candidates", "5"], 2, "name one with --retriever lance"),
        (["link", "m.jsonl", "--out", "l.jsonl", "--retriever", "oracle"], 3, "no retriever 'oracle'"),
        (["link", "m.jsonl", "--out", "l.jsonl", "--retriever", "lance", "--candidates", "0"], 3, "k is 0"),
        (["recall", "m.jsonl", "--out", "r"], 2, "name one with --retriever lance"),
        (["recall", "m.jsonl", "--out", "r", "--retriever", "exact"], 3, "without a retriever"),
        (["recall", "m.jsonl", "--out", "r", "--retriever", "lance", "--wanted", "7"], 2, "--wanted is 7"),
    ],
)
def test_faults(folder, arguments, code, message):
    (folder / "m.jsonl").write_text(json.dumps({"mention": "jaguar"}))
    exit_code, output = command([*arguments, "--kb", "kb"], folder)
    assert exit_code == code and message in output, output
