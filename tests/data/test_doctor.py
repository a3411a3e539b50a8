"""The doctor finds what was planted, all of it, and nothing in a sound folder."""

from __future__ import annotations

import random
import shutil

import pytest

from mimic_pl.data.doctor import batch_mates_with_same_gold, examine, run_doctor


def findings(folder, **options):
    return {finding.subject: finding for finding in examine(folder.module(**options)).findings}


def test_a_sound_folder(folder, capsys):
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
        "test mentions whose sentence is in train": ("1 of 7 (14.3%)", "warning"),
        "val mentions whose sentence is in train": ("0 of 5 (0.0%)", "ok"),
        "test mentions whose picture is in train": ("1 of 7 (14.3%)", "warning"),
        "mention pictures, missing": ("1 of 23 (4.3%)", "warning"),
        "entity pictures, unreadable": ("1 of 6 (16.7%)", "warning"),
    }
    assert {subject: (found[subject].value, found[subject].verdict) for subject in expected} == expected


def test_bad_pictures_are_errors_under_the_policy_error(folder):
    (folder.root / "kb_image" / "Q1_0.png").unlink()
    assert findings(folder, pictures="error")["entity pictures, missing"].verdict == "ERROR"


def test_missing_files_and_fields(folder):
    module = folder.module(entity_template="{name} {desc}")
    (folder.root / "Set_train.json").unlink()
    errors = {finding.subject for finding in examine(module).findings if finding.verdict == "ERROR"}
    assert errors == {"train file", "entity text"}


@pytest.mark.parametrize(("golds", "batch_size"), [("aab", 2), ("aaabbcdefg", 4), ("abc", 128), ("aa", 128), ("", 4)])
def test_batch_mates_against_drawing(golds, batch_size):
    rng, draws, met = random.Random(0), 4000, 0
    for _ in range(draws if golds else 0):
        mine = rng.randrange(len(golds))
        others = [gold for i, gold in enumerate(golds) if i != mine]
        met += golds[mine] in rng.sample(others, min(batch_size - 1, len(others)))
    assert batch_mates_with_same_gold(golds, batch_size) == pytest.approx(met / draws, abs=0.03)
