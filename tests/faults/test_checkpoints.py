"""Checkpoints with code, corruption or non-finite weights, through every way of loading them."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mimic_pl.checkpoints.published import read_published
from mimic_pl.checkpoints.reader import load_tensors, read_checkpoint
from mimic_pl.runs import load_run, open_run
from tests.faults.catalogue import check_command_error, expect_fault


class Bomb:
    """Creates a folder when it is unpickled by an unsafe loader."""

    def __init__(self, fuse):
        self.fuse = fuse

    def __reduce__(self):
        return (os.mkdir, (str(self.fuse),))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run."""
    return open_run(shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0"))


def arm(path, fuse):
    torch.save({**torch.load(path, weights_only=True), "payload": Bomb(fuse)}, path)


@pytest.mark.parametrize("stage", ["test", "fit", "robustness"])
def test_code_in_a_checkpoint_is_not_run_by_any_command(command, run, tmp_path, stage):
    arm(run.last_checkpoint, tmp_path / "exploded")
    code, _, err = command(stage, "--ckpt_path", str(run.last_checkpoint), "--config", str(run.config), folder=tmp_path)
    message = check_command_error("test_code_in_a_checkpoint_is_not_run_by_any_command", code, err)
    assert ".mkdir" in message
    assert not (tmp_path / "exploded").exists()
    torch.load(run.last_checkpoint, weights_only=False)
    assert (tmp_path / "exploded").exists(), "an unsafe loader does run the code"


def test_code_in_a_checkpoint_is_not_run_by_load_run(run, tmp_path):
    arm(run.last_checkpoint, tmp_path / "exploded")
    with expect_fault("test_code_in_a_checkpoint_is_not_run_by_load_run"):
        load_run(run.folder, "last")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["half", "all but the end", "empty", "text", "another pickle", "folder"])
def test_corrupted_checkpoints(command, run, tmp_path, damage):
    path = run.last_checkpoint
    whole = path.read_bytes()
    marked = bytearray(whole)  # a record marked as a folder, which torch silently skips
    marked[whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"/data/2")) + 38] |= 16
    content = {
        "folder": bytes(marked),
        "half": whole[: len(whole) // 2],
        "all but the end": whole[:-30],
        "empty": b"",
        "text": b"not a checkpoint",
        "another pickle": pickle.dumps([1, 2, 3], protocol=0),
    }
    path.write_bytes(content[damage])
    code, _, err = command("test", "--ckpt_path", "last", folder=tmp_path)
    assert str(path) in check_command_error("test_corrupted_checkpoints", code, err)
    for read in (read_checkpoint, read_published):
        with expect_fault("test_corrupted_checkpoints"):
            read(path)


def test_one_flipped_byte_in_a_checkpoint(command, run, tmp_path):
    path = run.last_checkpoint
    weights = torch.load(path, weights_only=True)["state_dict"]
    whole, rng = path.read_bytes(), random.Random(0)
    for tensor in rng.sample([weight for weight in weights.values() if weight.numel() > 50], 9):
        damaged = bytearray(whole)
        damaged[whole.index(tensor.numpy().tobytes()) + rng.randrange(tensor.numel() * 4)] ^= 1 << rng.randrange(7)
        path.write_bytes(damaged)
        load_tensors(path)  # torch does not notice
        for read in (read_checkpoint, read_published):
            with expect_fault("test_one_flipped_byte_in_a_checkpoint"):
                read(path)
    code, _, err = command("test", "--ckpt_path", "last", folder=tmp_path)
    check_command_error("test_one_flipped_byte_in_a_checkpoint", code, err)


@pytest.mark.parametrize("stage", ["test", "fit", "load_run", "published"])
def test_non_finite_weights(command, run, tmp_path, stage):
    content = torch.load(run.last_checkpoint, weights_only=True)
    content["state_dict"]["matcher.units.text.query.weight"][1, 2] = float("nan")
    torch.save(content, run.last_checkpoint)
    if stage == "published":
        save_file({"encoder.clip.x": torch.tensor([1.0, float("nan")])}, tmp_path / "x.safetensors")
        with expect_fault("test_non_finite_weights"):
            read_published(tmp_path / "x.safetensors")
        return
    if stage == "load_run":
        with expect_fault("test_non_finite_weights"):
            load_run(run.folder, "last")
        return
    options = ["--config", str(run.config), "--trainer.default_root_dir", str(tmp_path)] if stage == "fit" else []
    code, _, err = command(stage, "--ckpt_path", "last", *options, folder=tmp_path)
    message = check_command_error("test_non_finite_weights", code, err)
    assert "matcher.units.text.query.weight" in message and "last.ckpt" in message


def test_a_checkpoint_truncated_after_it_was_read(run):
    path = run.last_checkpoint
    whole = torch.load(path, weights_only=True)["state_dict"]
    loaded = read_checkpoint(path)["state_dict"]
    os.truncate(path, 1000)
    assert all(
        torch.equal(loaded[name], tensor) for name, tensor in whole.items()
    )  # memory-mapped weights would be lost
    with expect_fault("test_a_checkpoint_truncated_after_it_was_read"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change its user id")
def test_a_checkpoint_without_read_permission(run):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(shutil.copy(run.last_checkpoint, folder))
        path.chmod(0)
        os.seteuid(65534)
        try:
            for read in (read_checkpoint, read_published, load_tensors):
                with expect_fault("test_a_checkpoint_without_read_permission"):
                    read(path)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("damage", ["cut off", "header", "length", "empty"])
def test_corrupted_safetensors(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    save_file({"encoder.clip.x": torch.ones(1000)}, path)
    whole = path.read_bytes()
    content = {
        "cut off": whole[:-1],
        "header": whole.replace(b"data_offsets", b"data_0ffsets"),
        "length": b"\xff" * 8 + whole[8:],
        "empty": b"",
    }
    path.write_bytes(content[damage])
    with expect_fault("test_corrupted_safetensors"):
        read_published(path)
