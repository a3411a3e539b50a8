"""Whole commands that are killed, or told to end, at moments of chance; the same command line again, until it is done.

`INTERRUPTION_TRIALS=20` tries so many of each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml

from mimic_pl.checkpoint_reader import read_checkpoint
from mimic_pl.runs import open_run
from tests import tiny
from tests.faults.catalogue import told_by_command
from tests.launch import Started, needs_fork

pytestmark = needs_fork

TRIALS = int(os.environ.get("INTERRUPTION_TRIALS", "1"))


@pytest.fixture(scope="module")
def config(tiny_set, tmp_path_factory):
    """Five epochs of five steps and three batches of validation."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny.config(tiny_set, folder)
    del config["trainer"]["default_root_dir"]
    config["trainer"] |= {"max_epochs": 5, "enable_model_summary": False}
    config["early_stopping"] = {"patience": 100}
    config["data"]["init_args"] |= {"batch_size": 4, "eval_batch_size": 3, "num_workers": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def until_it_trains(command):
    """Wait for its first checkpoint."""
    lasts = "lightning_logs/*/checkpoints/last.ckpt"
    command.wait_for(lambda: any(path.stat().st_mtime_ns > command.begun for path in command.folder.glob(lasts)))


def fit(config, folder, processes=1):
    """Train, from the beginning or from where it ended."""
    options = ["--trainer.default_root_dir", str(folder), "--trainer.devices", str(processes), "--ckpt_path", "last"]
    return Started(["fit", "--config", str(config), *options], folder, processes)


def run_of(folder):
    """The one run that got as far as a checkpoint."""
    (checkpoints,) = {path.parent for path in folder.glob("lightning_logs/*/checkpoints/*.ckpt")}
    return open_run(checkpoints.parent)


def left(folder):
    """Everything in a run's last checkpoint that training goes on with."""
    checkpoint = read_checkpoint(run_of(folder).last_checkpoint)
    found = {f"weight {name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in state.items()}
    return {**found, "step": torch.tensor(checkpoint["global_step"])}


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """By number of processes: what is left of an undisturbed run, and its seconds from its first checkpoint on."""
    known = {}

    def run(processes):
        if processes not in known:
            command = fit(config, tmp_path_factory.mktemp("undisturbed"), processes)
            until_it_trains(command)
            begun = time.monotonic()
            assert command.codes() == [0] * processes, command.said()
            known[processes] = left(command.folder), time.monotonic() - begun
        return known[processes]

    return run


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_at_any_moment(config, undisturbed, tmp_path, trial):
    rng = random.Random(trial)
    whole, seconds = undisturbed(1)
    folder, codes = tmp_path / "run", []
    for turn in range(2):
        command = fit(config, folder)
        until_it_trains(command)
        time.sleep(rng.random() * seconds / 2)
        if turn == 0:  # while a checkpoint is written
            command.wait_for(lambda: any(folder.glob("lightning_logs/*/checkpoints/*.tmp")))
        command.send(signal.SIGKILL, [0])
        codes += command.codes()
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes, codes
    command = fit(config, folder)
    assert command.codes() == [0], command.said()
    assert "Resuming run" in command.said()
    same(whole, left(folder))
    assert not list(run_of(folder).folder.rglob("*.tmp"))


def end_twice(config, undisturbed, folder, trial, ends):
    """Tell a run to end, and a second time after it was resumed, each time by a signal to some of its processes."""
    processes = len(ends[0])
    whole, seconds = undisturbed(processes)
    rng = random.Random(trial)
    for number, ranks in zip((signal.SIGTERM, signal.SIGINT), ends, strict=True):
        command = fit(config, folder, processes)
        until_it_trains(command)
        time.sleep(rng.random() * seconds / 4)
        command.send(number, [rank for rank in range(processes) if ranks[rank]])
        assert command.codes() == [128 + number, *[0] * (processes - 1)], command.said()
        assert f"Interrupted by {signal.Signals(number).name} after step" in command.said()
    command = fit(config, folder, processes)
    assert command.codes() == [0] * processes, command.said()
    same(whole, left(folder))


@pytest.mark.parametrize("trial", range(TRIALS))
def test_told_to_end(config, undisturbed, tmp_path, trial):
    end_twice(config, undisturbed, tmp_path / "run", trial, [(True,), (True,)])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_two_processes_told_to_end(config, undisturbed, tmp_path, trial):
    """One process is told to, which is not the first; and all of them."""
    ends = [(False, True), (True, True)]
    if trial % 2:
        ends = [(True, True), (trial % 4 == 1, trial % 4 == 3)]
    end_twice(config, undisturbed, tmp_path / "run", trial, ends)


def journals(index):
    """The fragments that the processes have entered into their journals, with the times of their files."""
    entries = [e for path in index.glob("_unfinished/*.json") for e in json.loads(path.read_text())["fragments"]]
    files = [index / "data" / file["path"] for entry in entries for file in entry["fragment"]["files"]]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_lost_process_of_an_index_build(trained, tmp_path, monkeypatch, trial, victim):
    """The same command goes on from what each process had written; another number of processes does it all."""
    monkeypatch.setattr("mimic_pl.ranking.lance_writer.MAX_ROWS_PER_FRAGMENT", 8)
    root = tiny.write_set(tmp_path / "set", entities=240)

    def build(folder, processes=2):
        shutil.copytree(trained.run, folder, dirs_exist_ok=True)
        options = ["--data.root", str(root), "--data.entity_batch_size", "8", "--trainer.devices", str(processes)]
        return Started(["test", "--run", str(folder), "--model.index.storage", "disk", *options], folder, processes)

    whole = build(tmp_path / "whole")
    assert whole.codes() == [0, 0], whole.said()
    lost = build(tmp_path / "lost")
    index = lost.folder / "index" / "entities"
    count = random.Random(f"{trial} {victim}").randrange(1, 10)
    journal = index / "_unfinished" / f"part-{victim + 1}-of-2.json"
    lost.wait_for(lambda: journal.exists() and len(json.loads(journal.read_text())["fragments"]) >= count)
    lost.send(signal.SIGKILL, [victim])
    begun = time.monotonic()
    codes = lost.codes()
    assert codes[victim] == -signal.SIGKILL
    told_by_command("test_a_lost_process_of_an_index_build", codes[1 - victim], lost.logs[1 - victim].read_text())
    assert time.monotonic() - begun < 60
    assert not list(index.glob("_versions/*.manifest")) and not (lost.folder / "metrics.json").exists()
    kept = journals(index)
    assert len(kept) > count
    shutil.copytree(lost.folder, tmp_path / "alone")

    again = build(lost.folder)
    assert again.codes() == [0, 0], again.said()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing was written twice"
    alone = build(tmp_path / "alone", processes=1)
    assert alone.codes() == [0], alone.said()
    for run in (again.folder, alone.folder):
        assert len(list((run / "index" / "entities" / "data").iterdir())) == 30, "and nothing is left over"
        assert (run / "predictions.jsonl").read_bytes() == (whole.folder / "predictions.jsonl").read_bytes()
