"""Commands in processes of their own, forked from the one that runs the tests, where all imports are done."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch
from tqdm.auto import tqdm

from mimic_pl.cli import main

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
needs_fork = pytest.mark.skipif(FORK is None or sys.platform == "win32", reason="this system cannot fork")

PATIENCE = 150
"""Seconds after which a command hangs, on a machine that has other things to do as well."""


class Started:
    """A command in as many processes as it computes with; what they say goes to ``log0`` and so on.

    Args:
        arguments: The command line.
        folder: Where it is run.
        processes: How many, which ``--trainer.devices`` has to say as well; several meet as those of Lightning's own
            launcher do.
        before: Called in each of them, before anything else.
        name: What the files begin with.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        processes: int = 1,
        before: Callable[[], object] | None = None,
        name: str = "log",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.begun = folder, time.time_ns()
        self.logs = [folder / f"{name}{rank}" for rank in range(processes)]
        port = _free_port()

        def meet(rank: int) -> None:
            if processes > 1:
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
                os.environ.update(place, LOCAL_RANK=str(rank))
            if before is not None:
                before()

        self.processes = [_forked(arguments, folder, log, meet, rank) for rank, log in enumerate(self.logs)]

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until something has happened, or the command has ended."""
        end = time.monotonic() + PATIENCE
        while not happened() and all(process.is_alive() for process in self.processes):
            assert time.monotonic() < end, self.said()
            time.sleep(0.001)

    def send(self, number: signal.Signals, ranks: Iterable[int]) -> None:
        """Send a signal to some of its processes."""
        for rank in ranks:
            os.kill(self.processes[rank].pid, number)

    def codes(self) -> list[int]:
        """How its processes have ended, which is waited for."""
        for process in self.processes:
            process.join(PATIENCE)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"they hang:\n{self.said()}"
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        """What its processes have said so far."""
        return "\n".join(log.read_text() for log in self.logs)


def run(arguments: Sequence[str], folder: Path, processes: int = 1) -> None:
    """Run a command to its good end."""
    started = Started(arguments, folder, processes)
    assert started.codes() == [0] * processes, started.said()


def environment() -> dict[str, str]:
    """That of an interpreter of its own, which finds this checkout and takes one core."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def in_an_interpreter(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` to its end, whatever that is."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _forked(arguments: Sequence[str], folder: Path, log: Path, before: Callable[[int], None], rank: int):  # type: ignore[no-untyped-def]
    assert FORK is not None

    def work() -> None:
        torch.set_num_threads(1)  # the threads of the forked process are not there
        tqdm.set_lock(threading.RLock())
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w", 1), os.fdopen(os.dup(2), "w", 1)
        # Not to where pytest, and Lightning when it was imported, would have it.
        logging.basicConfig(format="%(message)s", force=True)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).handlers[:] = logging.getLogger().handlers
        os.chdir(folder)
        before(rank)
        main(list(arguments))

    process = FORK.Process(target=work)
    process.start()
    return process


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
