"""Run commands in processes forked from the test process, which has already imported everything."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm.auto import tqdm

from mimic_pl.cli import main

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
needs_fork = pytest.mark.skipif(FORK is None or sys.platform == "win32", reason="this system cannot fork")

TIMEOUT = 150
"""Seconds after which a command counts as hanging; generous, since the machine may be busy."""


class RunningCommand:
    """A command running in one or several processes, whose output goes to ``log0``, ``log1`` and so on.

    Args:
        arguments: The command line.
        folder: Its working directory.
        processes: How many, which has to equal ``--trainer.devices``; several rendezvous as those of Lightning's own
            launcher do.
        before: Called in each process before anything else.
        name: Prefix of the log files.
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
        self.folder, self.started_at = folder, time.time_ns()
        self.logs = [folder / f"{name}{rank}" for rank in range(processes)]
        port = free_port()

        def set_up(rank: int) -> None:
            if processes > 1:
                rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
                os.environ.update(rendezvous, LOCAL_RANK=str(rank))
            if before is not None:
                before()

        self.processes = [_fork(arguments, folder, log, set_up, rank) for rank, log in enumerate(self.logs)]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds or one of the processes has exited."""
        deadline = time.monotonic() + TIMEOUT
        while not condition() and all(process.is_alive() for process in self.processes):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.001)

    def send(self, signal_: signal.Signals, ranks: Iterable[int]) -> None:
        """Send a signal to some of its processes."""
        for rank in ranks:
            os.kill(self.processes[rank].pid, signal_)

    def exit_codes(self) -> list[int]:
        """Wait for the processes and return their exit codes."""
        for process in self.processes:
            process.join(TIMEOUT)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"processes hang:\n{self.output()}"
        return [process.exitcode for process in self.processes]

    def output(self) -> str:
        """What the processes have printed so far."""
        return "\n".join(log.read_text() for log in self.logs)


def run(arguments: Sequence[str], folder: Path, processes: int = 1) -> None:
    """Run a command, which has to succeed."""
    command = RunningCommand(arguments, folder, processes)
    assert command.exit_codes() == [0] * processes, command.output()


def in_own_process(work: Callable[..., Any], *arguments: Any, timeout: float = 4 * TIMEOUT, **named: Any) -> Any:
    """Call something in a forked process, and return its picklable result, or fail with its traceback.

    Once a process has used Lance, its forks cannot use it, and other tests fork whole commands. A process that hangs,
    as a fork may when another thread held a lock, ends after the timeout in seconds, and the failure says where it was.
    """
    assert FORK is not None
    receiver, sender = FORK.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+") as stacks:

        def call() -> None:
            faulthandler.enable(stacks)
            torch.set_num_threads(1)  # a fork has no copies of the threads of its parent
            try:
                outcome = (work(*arguments, **named), None, None)
            except pytest.skip.Exception as skipped:
                outcome = (None, None, skipped.msg)
            except BaseException:
                outcome = (None, traceback.format_exc(), None)
            sender.send(outcome)

        process = FORK.Process(target=call)
        process.start()
        sender.close()
        result, failure, skip_reason = received(receiver, process, timeout) or (None, None, None)
        process.join(timeout)
        abort(process)
        if process.exitcode and failure is None:
            stacks.seek(0)
            failure = f"the process ended with exit code {process.exitcode}\n{stacks.read()}"
    assert failure is None, failure
    if skip_reason is not None:
        pytest.skip(skip_reason)
    return result


def received(receiver: Connection, process: BaseProcess, timeout: float = TIMEOUT) -> Any:
    """What a process sends; None if it ends before, or is aborted after a timeout in seconds."""
    if not receiver.poll(timeout):
        abort(process)
    with suppress(EOFError):
        return receiver.recv()


def abort(process: BaseProcess) -> None:
    """Have a process that hangs write the stacks of its threads, and end."""
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGABRT)
        process.join()


def environment() -> dict[str, str]:
    """Environment of a new interpreter that imports this checkout and uses one core."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def run_python(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` in a new interpreter, whether or not it succeeds."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _fork(arguments: Sequence[str], folder: Path, log: Path, before: Callable[[int], None], rank: int):  # type: ignore[no-untyped-def]
    assert FORK is not None

    def work() -> None:
        torch.set_num_threads(1)  # a fork has no copies of the threads of its parent
        tqdm.set_lock(threading.RLock())
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w", 1), os.fdopen(os.dup(2), "w", 1)
        # Log to the file, not to the streams that pytest and Lightning captured on import.
        logging.basicConfig(format="%(message)s", force=True)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).handlers[:] = logging.getLogger().handlers
        os.chdir(folder)
        before(rank)
        main(list(arguments))

    process = FORK.Process(target=work)
    process.start()
    return process


def free_port() -> int:
    """A free port below those that systems give to outgoing connections, which could take it before it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
