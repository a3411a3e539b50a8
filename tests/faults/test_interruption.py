"""Commands that are killed or terminated at random moments, and rerun until they finish.

`INTERRUPTION_TRIALS=20` runs that many trials of each test.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml

from mimic_pl.checkpoints.reader import read_checkpoint
from mimic_pl.runs import open_run
from tests import tiny
from tests.faults.catalogue import check_command_error
from tests.launch import RunningCommand, needs_fork

pytestmark = needs_fork

TRIALS = int(os.environ.get("INTERRUPTION_TRIALS", "1"))


@pytest.fixture(scope="module")
def config(tiny_set, tmp_path_factory):
    """Five epochs of five steps and three validation batches."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny.config(tiny_set, folder)
    del config["trainer"]["default_root_dir"]
    config["trainer"] |= {"max_epochs": 5, "enable_model_summary": False}
    config["early_stopping"] = {"patience": 100}
    config["data"]["init_args"] |= {"batch_size": 4, "eval_batch_size": 3, "num_workers": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def wait_for_first_checkpoint(command):
    """Wait until training has written its first checkpoint."""
    pattern = "lightning_logs/*/checkpoints/last.ckpt"
    command.wait_for(lambda: any(path.stat().st_mtime_ns > command.started_at for path in command.folder.glob(pattern)))


def fit(config, folder, processes=1):
    """Start training, or resume it from the last checkpoint."""
    options = ["--trainer.default_root_dir", str(folder), "--trainer.devices", str(processes), "--ckpt_path", "last"]
    return RunningCommand(["fit", "--config", str(config), *options], folder, processes)


def run_of(folder):
    """The only run with a checkpoint."""
    (checkpoints,) = {path.parent for path in folder.glob("lightning_logs/*/checkpoints/*.ckpt")}
    return open_run(checkpoints.parent)


def final_state(folder):
    """The state in a run's last checkpoint from which training resumes."""
    checkpoint = read_checkpoint(run_of(folder).last_checkpoint)
    found = {f"weight {name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in state.items()}
    return {**found, "step": torch.tensor(checkpoint["global_step"])}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """By number of processes: final state of an uninterrupted run, and its duration after the first checkpoint."""
    results = {}

    def run(processes):
        if processes not in results:
            command = fit(config, tmp_path_factory.mktemp("uninterrupted"), processes)
            wait_for_first_checkpoint(command)
            start = time.monotonic()
            assert command.exit_codes() == [0] * processes, command.output()
            results[processes] = final_state(command.folder), time.monotonic() - start
        return results[processes]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_training_killed_at_random_moments(config, uninterrupted, tmp_path, trial):
    rng = random.Random(trial)
    whole, seconds = uninterrupted(1)
    folder, codes = tmp_path / "run", []
    for turn in range(2):
        command = fit(config, folder)
        wait_for_first_checkpoint(command)
        time.sleep(rng.random() * seconds / 4)  # far from its end, even if the machine is faster now
        if turn == 0:  # while a checkpoint is written
            command.wait_for(lambda: any(folder.glob("lightning_logs/*/checkpoints/*.tmp")))
        command.send(signal.SIGKILL, [0])
        codes += command.exit_codes()
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes, codes
    command = fit(config, folder)
    assert command.exit_codes() == [0], command.output()
    assert "Resuming run" in command.output()
    assert_same_state(whole, final_state(folder))
    assert not list(run_of(folder).folder.rglob("*.tmp"))


def terminate_twice(config, uninterrupted, folder, trial, ends):
    """Terminate a run, and again after it was resumed, each time by a signal to some of its processes."""
    processes = len(ends[0])
    whole, seconds = uninterrupted(processes)
    rng = random.Random(trial)
    for number, ranks in zip((signal.SIGTERM, signal.SIGINT), ends, strict=True):
        command = fit(config, folder, processes)
        wait_for_first_checkpoint(command)
        time.sleep(rng.random() * seconds / 4)
        command.send(number, [rank for rank in range(processes) if ranks[rank]])
        assert command.exit_codes() == [128 + number, *[0] * (processes - 1)], command.output()
        assert f"Interrupted by {signal.Signals(number).name} after step" in command.output()
    command = fit(config, folder, processes)
    assert command.exit_codes() == [0] * processes, command.output()
    assert_same_state(whole, final_state(folder))


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_termination_signals(config, uninterrupted, tmp_path, trial):
    terminate_twice(config, uninterrupted, tmp_path / "run", trial, [(True,), (True,)])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_termination_signals_to_two_processes(config, uninterrupted, tmp_path, trial):
    """A signal to the second process only, and to both."""
    ends = [(False, True), (True, True)]
    if trial % 2:
        ends = [(True, True), (trial % 4 == 1, trial % 4 == 3)]
    terminate_twice(config, uninterrupted, tmp_path / "run", trial, ends)


@pytest.mark.slow
def test_a_slurm_job_is_requeued(config, tmp_path, monkeypatch):
    """At its signal it writes a checkpoint into its run and asks for being requeued; then it resumes from there."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    slurm = {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "tiny", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    run = tmp_path / "lightning_logs" / "version_7"
    endless = ["fit", "--config", str(config), "--trainer.max_epochs", "9999", "--trainer.logger", "false"]
    command = RunningCommand(endless, tmp_path)
    wait_for_first_checkpoint(command)
    command.send(signal.SIGUSR1, [0])
    command.wait_for(lambda: (tmp_path / "requeued").exists())
    command.send(signal.SIGKILL, [0])
    assert command.exit_codes() == [-signal.SIGKILL], command.output()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    shutil.rmtree(run / "checkpoints")
    steps = read_checkpoint(run / "hpc_ckpt_1.ckpt")["global_step"]

    command = RunningCommand([*endless, "--trainer.max_steps", str(steps + 1)], tmp_path)
    assert command.exit_codes() == [0], command.output()
    assert "Resuming run lightning_logs/version_7, checkpoint hpc_ckpt_1.ckpt." in command.output()
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps + 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_process_of_an_index_build(trained, tmp_path, monkeypatch, trial, victim):
    """The same command resumes from what was written, with two processes or with one."""
    monkeypatch.setattr("mimic_pl.ranking.lance_writer.MAX_ROWS_PER_FRAGMENT", 8)
    root = tiny.write_set(tmp_path / "set", entities=240)

    def build(folder, processes=2):
        shutil.copytree(trained.run, folder, dirs_exist_ok=True)
        options = ["--data.root", str(root), "--data.entity_batch_size", "8", "--trainer.devices", str(processes)]
        return RunningCommand(
            ["test", "--run", str(folder), "--model.index.storage", "disk", *options], folder, processes
        )

    whole = build(tmp_path / "whole")
    assert whole.exit_codes() == [0, 0], whole.output()
    lost = build(tmp_path / "lost")
    index = lost.folder / "index" / "entities"
    count = random.Random(f"{trial} {victim}").randrange(1, 10)
    # The first version is the empty dataset; each append is another.
    lost.wait_for(lambda: len(list(index.glob("_versions/*.manifest"))) > count)
    lost.send(signal.SIGKILL, [victim])
    codes = lost.exit_codes()
    assert codes[victim] == -signal.SIGKILL
    check_command_error("test_a_killed_process_of_an_index_build", codes[1 - victim], lost.logs[1 - victim].read_text())
    assert not (lost.folder / "metrics.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in index.glob("data/*.lance")}
    assert count <= len(kept) < 30
    shutil.copytree(lost.folder, tmp_path / "alone")

    again = build(lost.folder)
    assert again.exit_codes() == [0, 0], again.output()
    # A process that was killed in the middle of an append may have left a file that is in no version.
    files = {path: path.stat().st_mtime_ns for path in index.glob("data/*.lance")}
    assert len(kept.items() - files.items()) <= 2, "no fragment was rewritten"
    alone = build(tmp_path / "alone", processes=1)
    assert alone.exit_codes() == [0], alone.output()
    for run in (again.folder, alone.folder):
        assert len(list((run / "index" / "entities" / "data").iterdir())) == 30, "no fragments are left over"
        assert (run / "predictions.jsonl").read_bytes() == (whole.folder / "predictions.jsonl").read_bytes()
