"""``mimic-pl robustness``: degradation curves of a run, whose other files are not touched."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from mimic_pl.files import acquire_lock


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_metrics_equal_those_of_test(command, home):
    run = home / "lightning_logs" / "version_0"
    assert command("test", folder=home)[0] == 0
    clean = json.loads((run / "metrics.json").read_text())
    assert "degradation" not in clean
    before = contents(home)

    code, out, err = command("robustness", "--kinds", "typos", folder=home)
    assert code == 0, err
    assert "Using run lightning_logs/version_0" in out and "typos" in out and "cross_modal" in out
    after = contents(home)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {run / "robustness.json", run / ".robustness.lock"}
    records = json.loads((run / "robustness.json").read_text())
    assert [(r["kind"], r["side"], r["strength"]) for r in records] == [
        ("typos", "text", strength) for strength in (0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert all(set(record) == {"kind", "side", "strength", "metrics"} for record in records)
    assert records[0]["metrics"] == clean["metrics"]

    # The same grade through the option of the data module, which the summary records.
    assert command("test", "--data.degradation", "Typos", "--data.degradation.strength", "0.4")[0] == 0
    degraded = json.loads((run / "metrics.json").read_text())
    assert degraded["metrics"] == records[-1]["metrics"] != clean["metrics"]
    assert degraded["degradation"] == "typos 0.4"


def test_options(command, home, tiny_set):
    run = home / "lightning_logs" / "version_0"
    moved = home / "moved"
    shutil.copytree(tiny_set, moved)
    options = ("--kinds=missing_sentence", "--split=val", "--seed=7", f"--data.root={moved}", "--ckpt_path=last")
    code, out, err = command("robustness", "--run", str(run), *options, folder=home)
    assert code == 0, err
    assert "val: 7 mentions, seed 7" in out and "checkpoint last.ckpt" in out
    assert len(json.loads((run / "robustness.json").read_text())) == 5


def test_two_commands_do_not_write_into_one_run(command, home):
    lock = acquire_lock(home / "lightning_logs" / "version_0", ".robustness.lock")
    code, _, err = command("robustness", "--kinds", "typos", folder=home)
    lock.release()
    assert code == 7 and "Another process is writing to" in err


def test_errors(command, home, trained, tmp_path):
    code, _, err = command("robustness", "--kinds", "sharpness", folder=home)
    assert code == 3 and "unknown kind sharpness. Choose from: blur" in err
    code, _, err = command("robustness", "--config", str(trained.config))
    assert code == 3 and "omit --config and --model" in err
    code, _, err = command("robustness", "--data.root", "nowhere")
    assert code == 3 and "'nowhere' does not exist" in err
    code, _, err = command("test", "--data.degradation", "Blur", "--data.degradation.strength", "-1")
    assert code == 3 and "Blur: strength is -1.0; it must be a finite number from 0 to 100." in err
    (tmp_path / "empty").mkdir()
    code, _, err = command("robustness", folder=tmp_path / "empty")
    assert code == 3 and "There is no training run" in err
    assert not list(home.rglob("robustness.json"))


def test_help(command):
    code, out, _ = command("robustness", "--help")
    assert code == 0 and "--kinds" in out and "--data.root" not in out.split("--kinds")[0]
    assert "robustness" in command("--help")[1]
