"""Whole commands that are killed, or told to end, at moments of chance; the same command line again, until it is done.

`INTERRUPTION_TRIALS=20` tries so many of each.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time

import pytest
import torch
import yaml

from mimic_pl.checkpoint import read_checkpoint
from mimic_pl.runs import open_run
from tests import tiny
from tests.faults.test_machine import FORK, child, ended

pytestmark = pytest.mark.skipif(FORK is None or sys.platform == "win32", reason="this system can not fork")

TRIALS = int(os.environ.get("INTERRUPTION_TRIALS", "1"))


@pytest.fixture(scope="module")
def config(tiny_set, tmp_path_factory):
    """Six epochs of five steps and three batches of validation."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny.config(tiny_set, folder)
    del config["trainer"]["default_root_dir"]
    config["trainer"] |= {"max_epochs": 6, "enable_model_summary": False}
    config["early_stopping"] = {"patience": 100}
    config["data"]["init_args"] |= {"batch_size": 4, "eval_batch_size": 3, "num_workers": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


class Started:
    """A command in processes of its own, as many as it trains with."""

    def __init__(self, config, folder, processes=1, options=()):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        arguments = ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
        arguments += options
        if processes > 1:
            arguments += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}

        def before(rank):
            return lambda: os.environ.update(place, LOCAL_RANK=str(rank)) if processes > 1 else None

        self.logs = [folder / f"log{rank}" for rank in range(processes)]
        self.processes = [child(arguments, folder, log, before(rank)) for rank, log in enumerate(self.logs)]

    def wait_for(self, happened):
        """Until something has happened, or the command has ended."""
        end = time.monotonic() + 40
        while not happened() and all(process.is_alive() for process in self.processes):
            assert time.monotonic() < end, self.said()
            time.sleep(0.001)

    def trains(self):
        """Whether it has written a checkpoint."""
        return any(self.folder.glob("lightning_logs/*/checkpoints/last.ckpt"))

    def send(self, number, ranks):
        for rank in ranks:
            os.kill(self.processes[rank].pid, number)

    def codes(self):
        return [ended(process) for process in self.processes]

    def said(self):
        return "\n".join(log.read_text() for log in self.logs)


def left(folder):
    """Everything in a run's last checkpoint that training goes on with."""
    (run,) = (open_run(path) for path in (folder / "lightning_logs").iterdir() if (path / "checkpoints").is_dir())
    checkpoint = read_checkpoint(run.last_checkpoint)
    found = {f"weight {name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in state.items()}
    return {**found, "step": torch.tensor(checkpoint["global_step"])}


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """What is left of an undisturbed run, and the seconds that it takes from its first checkpoint on."""
    command = Started(config, tmp_path_factory.mktemp("undisturbed"))
    command.wait_for(command.trains)
    begun = time.monotonic()
    assert command.codes() == [0], command.said()
    return left(command.folder), time.monotonic() - begun


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_at_any_moment(config, undisturbed, tmp_path, trial):
    rng = random.Random(trial)
    whole, seconds = undisturbed
    kills = 0
    for turn in range(3 if TRIALS > 1 else 2):
        command = Started(config, tmp_path / "run")
        if turn == 0:
            command.wait_for(lambda: any(tmp_path.glob("run/lightning_logs/*/checkpoints/*.tmp")))  # noqa: B023
        else:
            command.wait_for(command.trains)
            time.sleep(rng.random() * seconds)
        command.send(signal.SIGKILL, [0])
        code = command.codes()
        assert code in ([-signal.SIGKILL], [0]), command.said()
        kills += code == [-signal.SIGKILL]
    command = Started(config, tmp_path / "run")
    assert command.codes() == [0], command.said()
    assert kills and "Resuming run" in command.said()
    same(whole, left(tmp_path / "run"))
    assert not list(tmp_path.glob("run/lightning_logs/*/checkpoints/*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("trial", range(TRIALS))
def test_told_to_end(config, undisturbed, tmp_path, number, trial):
    whole, seconds = undisturbed
    command = Started(config, tmp_path / "run")
    command.wait_for(command.trains)
    time.sleep(random.Random(trial + number).random() * seconds * 0.4)
    command.send(number, [0])
    assert command.codes() == [128 + number], command.said()
    assert f"Ended by {signal.Signals(number).name} after step" in command.said()
    command = Started(config, tmp_path / "run")
    assert command.codes() == [0], command.said()
    same(whole, left(tmp_path / "run"))


TWO = [(signal.SIGTERM, (1,)), (signal.SIGINT, (0, 1))]
if TRIALS > 1:
    TWO += [(signal.SIGTERM, (0, 1)), (signal.SIGTERM, (0,)), (signal.SIGINT, (1,)), (signal.SIGINT, (0,))]
NO_VALIDATION = ["--trainer.limit_val_batches", "0", "--early_stopping.strict", "false", "--checkpoint.monitor", "null"]


@pytest.fixture(scope="module")
def undisturbed_two(config, tmp_path_factory):
    command = Started(config, tmp_path_factory.mktemp("two"), 2, NO_VALIDATION)
    command.wait_for(command.trains)
    begun = time.monotonic()
    assert command.codes() == [0, 0], command.said()
    return left(command.folder), time.monotonic() - begun


@pytest.mark.parametrize(("number", "ranks"), TWO)
@pytest.mark.parametrize("trial", range(TRIALS))
def test_two_processes_told_to_end(config, undisturbed_two, tmp_path, number, ranks, trial):
    whole, seconds = undisturbed_two
    command = Started(config, tmp_path / "run", 2, NO_VALIDATION)
    command.wait_for(command.trains)
    time.sleep(random.Random(trial + number).random() * seconds * 0.4)
    command.send(number, ranks)
    assert command.codes() == [128 + number, 0], command.said()
    command = Started(config, tmp_path / "run", 2, NO_VALIDATION)
    assert command.codes() == [0, 0], command.said()
    same(whole, left(tmp_path / "run"))
