"""Damaged and foreign folders are refused with what to do, and an interrupted save is not taken for a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mimic_pl import MIMIC
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import CheckpointError, ConfigError, StoreError
from mimic_pl.files import lock_folder
from tests import tiny
from tests.launch import needs_fork
from tests.training import UNITS


def make_model(seed=0):
    torch.manual_seed(seed)
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=UNITS).eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_model().save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def saved(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


FILES = ["model.safetensors", "encoder/config.json", "encoder/tokenizer.json", "encoder/preprocessor_config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_in_every_file(saved, name):
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its checksum differs.*Get the file again"):
        MIMIC.from_pretrained(saved)


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_missing_files_are_named(saved, name):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: it has {len(content) - 7} bytes instead of"):
        MIMIC.from_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"is incomplete: it lacks {name}"):
        MIMIC.from_pretrained(saved)


def change(saved, edit):
    config = json.loads((saved / "config.json").read_text())
    edit(config)
    (saved / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c: c["model"]["init_args"]["encoder"]["init_args"].update(image_dim=9), "was changed after it was"),
        (lambda c: c.pop("model"), r"lacks what describes the model \(KeyError"),
        (lambda c: c.update(files={"../model.safetensors": {"bytes": 1, "sha256": ""}}), "leads out of the folder"),
        (lambda c: c.update(files={"/etc/passwd": {"bytes": 1, "sha256": ""}}), "leads out of the folder"),
        (lambda c: c.update(format=2), "has format 2.*reads format 1. Update mimic-pl"),
        (lambda c: c.update(library_name="other"), "is not a model of mimic-pl: its config.json is of another program"),
        (lambda c: c["encoder"].update(reads_padding=True), "reads_padding was True, and is False"),
        (lambda c: c["versions"].update(timm="0.1") or c["encoder"].update(image_size=7), "saved with: timm 0.1"),
    ],
)
def test_a_config_that_is_not_what_was_written(saved, edit, message):
    change(saved, edit)
    with pytest.raises(CheckpointError, match=message):
        MIMIC.from_pretrained(saved)


def test_other_folders(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no folder '.*nowhere'"):
        MIMIC.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no config\.json.*load_run"):
        MIMIC.from_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"is a model of transformers \(clip\).*--model\.encoder\.pretrained"):
        MIMIC.from_pretrained(saved / "encoder")
    with pytest.raises(ConfigError, match="which has no revision 'v2'"):
        MIMIC.from_pretrained(saved, revision="v2")
    (saved / "config.json").write_text('{"library_name": ')
    with pytest.raises(CheckpointError, match=r"The config\.json of .* is damaged: .*Get the file again"):
        MIMIC.from_pretrained(saved)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    torch.manual_seed(1)
    other = MIMIC(CLIPEncoder(**{**tiny.ENCODER, "image_dim": 12}), units=UNITS).save_pretrained(tmp_path / "other")
    shutil.copy(other / "model.safetensors", saved / "model.safetensors")
    files = json.loads((other / "config.json").read_text())["files"]
    change(saved, lambda config: config["files"].update({"model.safetensors": files["model.safetensors"]}))
    with pytest.raises(CheckpointError, match="do not fit the model.*another shape.*encoder.image_global.weight"):
        MIMIC.from_pretrained(saved)


def test_weights_that_are_nan_are_not_saved(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.encoder.image_global.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"contain NaN: encoder\.image_global\.bias"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "config.json").exists()


def test_nothing_else_is_overwritten(tmp_path, saved):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains other files \(README\.md\).*Give a new or empty folder"):
        make_model().save_pretrained(tmp_path / "project")
    with pytest.raises(ConfigError, match="contains other files"):
        make_model().save_pretrained(saved / "encoder")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        make_model().save_pretrained(tmp_path / "file")
    (tmp_path / "git" / ".git").mkdir(parents=True)
    make_model().save_pretrained(tmp_path / "git")
    assert (tmp_path / "git" / ".git").is_dir()


def test_an_earlier_model_is_replaced_as_a_whole(saved):
    (saved / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier model")
    (saved / "notes.txt").write_text("mine")
    model = make_model(7)
    model.save_pretrained(saved)
    state = MIMIC.from_pretrained(saved).state_dict()
    assert all(torch.equal(own, state[name]) for name, own in model.state_dict().items())
    found = sorted(path.name for path in saved.iterdir())
    assert found == ["README.md", "config.json", "encoder", "model.safetensors", "notes.txt"]


def test_one_writer_at_a_time(saved):
    staging = saved / ".saving.tmp"
    staging.mkdir()
    lock = lock_folder(staging, 0)
    try:
        with pytest.raises(StoreError, match="Another process is writing"):
            make_model().save_pretrained(saved)
    finally:
        lock.release()
    make_model().save_pretrained(saved)
    assert not staging.exists()


def test_a_full_disk(small_disk):
    sizes = {"vocab_size": 100_000, **tiny.ENCODER["config"]["text_config"], "hidden_size": 64}
    encoder = {**tiny.ENCODER, "vocabulary": [f"word{n}" for n in range(30_000)]}
    encoder["config"] = {**encoder["config"], "text_config": {**sizes, "intermediate_size": 64}}
    model = MIMIC(CLIPEncoder(**encoder), units=UNITS)
    with pytest.raises(StoreError, match=r"cannot be written|disk is full"):
        model.save_pretrained(small_disk / "model")
    assert not (small_disk / "model" / "config.json").exists()
    assert not list((small_disk / "model").glob("*"))


KILLS = """
import os, signal, sys, time
from pathlib import Path
import torch
from mimic_pl import MIMIC
from mimic_pl.errors import CheckpointError
from tests.hub.test_damaged_folders import make_model

folder, found = Path(sys.argv[1]), []
models = [make_model(seed) for seed in range(2)]
states = [model.state_dict() for model in models]
for kill in range(60):
    writer = os.fork()
    if not writer:
        for number in range(10_000):
            models[number % 2].save_pretrained(folder)
    time.sleep(0.02 + 0.0137 * kill)
    while kill == 59 and not (folder / "config.json").exists():  # a slow machine
        time.sleep(0.01)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    try:
        state = MIMIC.from_pretrained(folder).state_dict()
    except CheckpointError as error:
        assert "has no config.json" in str(error) or "There is no folder" in str(error), error
        found.append("none")
        continue
    whole = [all(torch.equal(own, state[name]) for name, own in known.items()) for known in states]
    assert any(whole), "a mixture"
    found.append("whole")
make_model(9).save_pretrained(folder)
assert not (folder / ".saving.tmp").exists()
print(found.count("whole"), found.count("none"))
"""


@pytest.mark.slow
@needs_fork
def test_a_killed_save_leaves_a_whole_model_or_none(tmp_path):
    # In a process without other threads, whose forks would wait for them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    whole, none = map(int, done.stdout.split())
    print(f"{whole} whole models, {none} times none")
    assert whole > 0 and whole + none == 60
