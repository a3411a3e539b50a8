"""The doctor reports all planted problems, and none in a valid folder."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from mimic_pl.data import RichpediaMEL
from mimic_pl.data.doctor import batch_mates_with_same_gold, examine, run_doctor
from mimic_pl.errors import DataError
from mimic_pl.processor import Processor
from tests.shared import SHARED, needs_shared

FILES = ("train", "test")


def findings_of(module):
    if not module.has_processor:
        module.processor = Processor()
    return {finding.subject: finding for finding in examine(module).findings}


def findings(folder, **options):
    return findings_of(folder.module(**options))


def test_a_valid_folder(folder, capsys):
    assert run_doctor(folder.module()) == 0
    assert "ERROR" not in capsys.readouterr().out


def test_everything_at_once(folder):
    folder.write_qid2id = False
    folder.entities += [folder.entities[0], {"id": 9, "qid": 5}]
    folder.entities[1]["attr"] = " "
    train, test = folder.splits["train"], folder.splits["test"]
    train[0]["answer"], train[1]["answer"] = "nil", "Q77"
    train[2]["id"] = train[3]["id"]
    test[0]["sentence"] = train[5]["sentence"]
    shutil.copy(folder.root / "mention_images" / "train0.jpg", folder.root / "mention_images" / "test1.jpg")
    (folder.root / "mention_images" / "test2.jpg").unlink()
    (folder.root / "kb_image" / "Q1_0.png").write_bytes(b"?")
    report = examine(folder.module())
    assert report.has_errors
    found = {finding.subject: finding for finding in report.findings}
    assert sum(finding.subject == "knowledge base" for finding in report.findings) == 2
    expected = {
        "entities": ("6", "ok"),
        "entities with empty attributes": ("1 of 6 (16.7%)", "note"),
        "train mentions without gold (nil)": ("1 of 11 (9.1%)", "note"),
        "train golds not in the knowledge base": ("1 of 11 (9.1%)", "warning"),
        "train mention ids, used more than once": ("1", "ERROR"),
        "test mentions whose sentence is also in train": ("1 of 7 (14.3%)", "warning"),
        "val mentions whose sentence is also in train": ("0 of 5 (0.0%)", "ok"),
        "test mentions whose image is also in train": ("1 of 7 (14.3%)", "warning"),
        "mention images, missing": ("1 of 23 (4.3%)", "warning"),
        "entity images, unreadable": ("1 of 6 (16.7%)", "warning"),
    }
    assert {subject: (found[subject].value, found[subject].verdict) for subject in expected} == expected


def test_unusable_images_are_errors_under_policy_error(folder):
    (folder.root / "kb_image" / "Q1_0.png").unlink()
    assert findings(folder, image_policy="error")["entity images, missing"].verdict == "ERROR"


def test_missing_files_and_fields(folder):
    module = folder.module(entity_template="{name} {desc}")
    (folder.root / "Set_train.json").unlink()
    errors = {finding.subject for finding in examine(module).findings if finding.verdict == "ERROR"}
    assert errors == {"train file", "entity text"}


def errors_of(module):
    return [(finding.subject, finding.value) for finding in examine(module).findings if finding.verdict == "ERROR"]


def test_one_malformed_file_does_not_hide_findings_in_others(folder):
    folder.splits["test"][3]["answer"] = "Q77"
    module = folder.module()
    (folder.root / "Set_dev.json").write_bytes(b'[{"id": 1},\n {"id": "\xff"}]')
    report = examine(module)
    (error,) = [finding for finding in report.findings if finding.verdict == "ERROR"]
    assert error.subject == "val file" and "line 2, column 10: the byte 0xff" in error.value
    found = {finding.subject: finding for finding in report.findings}
    assert found["test golds not in the knowledge base"].value.startswith("1 of 7")


def test_a_malformed_knowledge_base_is_one_error_without_unknown_golds(folder):
    module = folder.module()
    (folder.root / "kb_entity.json").write_text("[")
    assert [subject for subject, _ in errors_of(module)] == ["knowledge base"]
    assert "train golds not in the knowledge base" not in findings_of(module)


def test_a_malformed_qid2id_leaves_the_knowledge_base_readable(folder):
    module = folder.module()
    (folder.root / "qid2id.json").write_text("[")
    ((subject, value),) = errors_of(module)
    assert subject == "knowledge base" and "qid2id.json, line 1" in value
    assert findings_of(module)["entities"].value == "6"


def test_a_duplicate_qid_and_an_empty_split(folder, capsys):
    folder.write_qid2id = False
    folder.entities.append({**folder.entities[2], "id": 6})
    folder.splits["dev"] = []
    module = folder.module()
    assert run_doctor(module) == DataError.exit_code == 4
    assert "ERROR" in capsys.readouterr().out
    duplicate, empty = errors_of(module)
    assert "'Q2' is also record 2" in duplicate[1] and empty == ("val file", "empty")


def test_missing_and_ambiguous_image_folders(folder):
    module = folder.module()
    (folder.root / "mention_images").rename(folder.root / "elsewhere")
    assert findings_of(module)["mention images, missing"].value == "23 of 23 (100.0%)"
    (folder.root / "kb_images").mkdir()
    assert [subject for subject, _ in errors_of(module)] == ["entity images", "mention images, missing"]


def test_the_file_to_predict_and_values_taken_as_text(folder, tmp_path):
    rows = [{**row, "id": f"new{n}", "answer": None, "sentence": n} for n, row in enumerate(folder.splits["test"])]
    (folder.root / "mention_images" / "test2.jpg").unlink()
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = examine(folder.module(predict_file=str(tmp_path / "new.jsonl")))
    found = {finding.subject: (finding.value, finding.verdict) for finding in report.findings}
    assert found["predict mentions"] == ("7", "ok") and "predict mentions without gold (nil)" not in found
    value, verdict = found["predict file, while reading"]
    assert "a number as 'sentence' is taken as text (records: 7;" in value and verdict == "note"
    assert not report.has_errors
    missing = examine(folder.module(predict_file=str(tmp_path / "other.jsonl")))
    assert [row.subject for row in missing.findings if "does not exist" in row.value] == ["predict file"]


def test_lines_end_with_text_without_a_terminal(folder, capsys):
    run_doctor(folder.module())
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line == line.rstrip() for line in lines)


def test_images_that_are_not_used_are_not_opened(folder):
    module = folder.module(mention_image_folder=None)
    (folder.root / "mention_images").rename(folder.root / "elsewhere")
    found = findings_of(module)
    assert found["mention images"].value == "not used: mention_image_folder is null"
    assert not any(finding.verdict == "ERROR" for finding in found.values())


def test_oversized_images(folder):
    row = findings(folder, max_pixels=9 * 6 - 1)["mention images, oversized"]
    assert (row.value, row.verdict) == ("23 of 23 (100.0%)", "warning")


@needs_shared("data", "RichpediaMEL")
def test_richpedia():
    found = findings_of(RichpediaMEL(str(SHARED / "data" / "RichpediaMEL")))
    assert found["entities"].value == "17,805 (published 160,933)" and found["entities"].verdict == "note"
    assert found["test mentions"].value == "3,560 (published 3,562)"
    # Counted independently, with a set of the training sentences.
    read = {split: json.loads((SHARED / f"data/RichpediaMEL/RichpediaMEL_{split}.json").read_text()) for split in FILES}
    sentences = {row["sentence"] for row in read["train"]}
    shared = sum(row["sentence"] in sentences for row in read["test"])
    assert shared and found["test mentions whose sentence is also in train"].value.startswith(f"{shared} of 3,560")


@pytest.mark.parametrize(("golds", "batch_size"), [("aab", 2), ("aaabbcdefg", 4), ("abc", 128), ("aa", 128), ("", 4)])
def test_batch_mates_against_simulation(golds, batch_size):
    rng, draws, hits = random.Random(0), 4000, 0
    for _ in range(draws if golds else 0):
        own = rng.randrange(len(golds))
        others = [gold for i, gold in enumerate(golds) if i != own]
        hits += golds[own] in rng.sample(others, min(batch_size - 1, len(others)))
    assert batch_mates_with_same_gold(golds, batch_size) == pytest.approx(hits / draws, abs=0.03)
