"""Launching processes by torchrun and by Lightning, and what happens to the others if one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from mimic_pl.checkpoints.reader import read_checkpoint
from tests import tiny
from tests.faults.catalogue import check_command_error
from tests.launch import RunningCommand, environment, needs_fork, run, run_python

pytestmark = [
    needs_fork,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find child processes"),
]

FIT = ["fit", "--config", "config.yaml"]
ENDLESS = [*FIT, "--trainer.max_epochs", "100000", "--early_stopping.patience", "1000000"]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.fixture
def folder(tmp_path, tiny_set):
    config = tiny.config(tiny_set, tmp_path)
    del config["trainer"]["default_root_dir"]
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.slow
def test_torchrun(folder):
    """The command line of the README on one machine gives the weights of any other launcher."""
    (folder / "torchrun").mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mimic_pl"]
    done = run_python([*launch, "fit", "--config", "../config.yaml"], folder / "torchrun")
    assert done.returncode == 0, done.stdout + done.stderr
    run(FIT, folder, 2)
    expected = read_checkpoint(folder / LAST)["state_dict"]
    weights = read_checkpoint(folder / "torchrun" / LAST)["state_dict"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_the_first_process_is_killed(folder):
    fit = RunningCommand(ENDLESS, folder, 2)
    fit.wait_for((folder / LAST).exists)
    fit.send(signal.SIGKILL, [0])
    codes = fit.exit_codes()
    assert codes[0] == -signal.SIGKILL
    check_command_error("test_the_first_process_is_killed", codes[1], fit.logs[1].read_text())


def children(process: int) -> list[int]:
    """Child processes of a process that run mimic_pl."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"mimic_pl" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@pytest.mark.slow
def test_a_process_launched_by_lightning_is_killed(folder):
    with (folder / "log").open("w") as log:
        first = subprocess.Popen(
            [sys.executable, "-m", "mimic_pl", *ENDLESS], cwd=folder, env=environment(), stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while not (folder / LAST).exists():
            assert first.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        (second,) = children(first.pid)
        os.kill(second, signal.SIGKILL)
        code = first.wait(60)
    finally:
        first.kill()
    check_command_error("test_a_process_launched_by_lightning_is_killed", code, (folder / "log").read_text())
