"""Names and ids of a data set control neither the terminal nor the files of a report."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import tiny
from tests.cli.conftest import write_config

EVIL = "\x1b[31m[red]\x07\r\u202e=1+1 [a](https://evil.example)\n<b>|"


def is_harmless(text: str) -> bool:
    """Without control characters; rich prints no colours, since the output is not a terminal."""
    return not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text) and "\u202e" not in text


@pytest.fixture(scope="module")
def evil(tmp_path_factory, tiny_set) -> Path:
    """A data set and a unit with such names and ids; two of them have a million characters."""
    home = tmp_path_factory.mktemp("evil")
    root = shutil.copytree(tiny_set, home / f"{EVIL.replace('/', '').strip()}")
    entities = json.loads((root / "kb_entity.json").read_text())
    for entity in entities:
        entity["entity_name"] += EVIL
        entity["qid"] += EVIL
    entities[0]["entity_name"] += 1_000_000 * "x"
    (root / "kb_entity.json").write_text(json.dumps(entities))
    (root / "qid2id.json").unlink()
    for split in ("train", "dev", "test"):
        mentions = json.loads((root / f"Tiny_{split}.json").read_text())
        for number, mention in enumerate(mentions):
            mention["answer"] += EVIL if number else "?"  # the first gold is not in the knowledge base
            mention["mentions"] += EVIL
            mention["id"] = EVIL
        mentions[1]["mentions"] += 1_000_000 * "y"
        (root / f"Tiny_{split}.json").write_text(json.dumps(mentions))
    config = tiny.config(root, home)
    config["model"]["init_args"]["units"]["[red]\x1b[31m=sum"] = config["model"]["init_args"]["units"].pop("text")
    write_config(home / "tiny.yaml", config)
    return home


@pytest.mark.slow
def test_no_output_of_a_command_has_control_characters(evil, command):
    shown = {}
    for arguments in (["doctor", "--config", "tiny.yaml"], ["fit", "--config", "tiny.yaml"], ["test"]):
        code, out, err = command(*arguments, folder=evil)
        assert code == (4 if arguments[0] == "doctor" else 0), out + err  # ids are used more than once
        assert is_harmless(out) and is_harmless(err), repr(out + err)
        shown[arguments[0]] = out + err
    assert "[red]\\x1b[31m=sum" in shown["test"], "a unit's name is not markup"
    assert "duplicate" in shown["doctor"] or "more than once" in shown["doctor"]

    events = max((evil / "lightning_logs" / "version_0").glob("events*"), key=lambda path: path.stat().st_size)
    accumulator = EventAccumulator(str(events), size_guidance={"tensors": 0}).Reload()
    for event in accumulator.Tensors("samples/text_summary"):
        text = event.tensor_proto.string_val[0].decode()
        assert len(text) < 20_000 and is_harmless(text)
        assert not any("link_open" in str(token) for token in MarkdownIt("commonmark").enable("table").parse(text))


def test_errors_name_the_ids_escaped_and_bounded(evil, command, tmp_path):
    config = yaml.safe_load((evil / "tiny.yaml").read_text())
    root = Path(shutil.copytree(config["data"]["init_args"]["root"], tmp_path / "broken"))
    entities = json.loads((root / "kb_entity.json").read_text())
    entities[1]["qid"] = entities[0]["qid"] = EVIL + 2_000_000 * "z"
    (root / "kb_entity.json").write_text(json.dumps(entities))
    code, _, err = command("fit", "--config", str(evil / "tiny.yaml"), "--data.root", str(root), folder=tmp_path)
    assert code == 4 and is_harmless(err)
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "kb_entity.json" in message and "is also record 0" in message and len(message) < 2_200


def test_the_report_has_no_live_text(evil, command, tmp_path):
    run = evil / "lightning_logs" / "version_0"
    if not (run / "metrics.json").exists():
        pytest.skip("needs the run of the first test")
    name = "=1+1 [a](www.evil.example) `b` $\\frac$ <i>|"
    shutil.copytree(run, tmp_path / name / "version_0")
    code, _, err = command("report", f"{name}/version_0", folder=tmp_path)
    assert code == 0, err
    report = (tmp_path / "report" / "report.md").read_text()
    assert "link_open" not in str(MarkdownIt("commonmark").enable("table").parse(report))
    (row,) = csv.DictReader((tmp_path / "report" / "report.csv").open(newline=""))
    assert row["experiment"] == f"'{name}"
    assert not any(value[:1] in ("=", "+", "@") for value in row.values())
