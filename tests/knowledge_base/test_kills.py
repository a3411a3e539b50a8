"""Killed at any moment, a knowledge base opens, has lost nothing that was acknowledged, and ranks exactly."""

from __future__ import annotations

import faulthandler
import random
import time
import traceback

import pytest

from tests.knowledge_base.journal import Journal, work
from tests.knowledge_base.parts import import_lance
from tests.launch import FORK, TIMEOUT, needs_fork, received

KILLS_OF_A_FOLDER = 15


def start(folder, seed):
    """Start a process that works on a folder; returns it with the pipe on which it reports."""
    assert FORK is not None
    receiver, sender = FORK.Pipe(duplex=False)

    def target():
        faulthandler.enable(stacks_of(folder).open("w"))
        try:
            work(folder, seed, lambda: sender.send("ready"))
        except BaseException:
            sender.send(traceback.format_exc())

    process = FORK.Process(target=target)
    process.start()
    sender.close()
    return process, receiver


def stacks_of(folder):
    return folder.with_suffix(".stacks")


def require_ready(receiver, process, folder):
    report = received(receiver, process)
    assert report == "ready", report or f"hanging or dead:\n{stacks_of(folder).read_text()}"


def acknowledged(journal):
    """Number of changes that have returned, or were found after a kill."""
    return sum(bool(line.get("end")) for line in journal.lines())


def kill_at_random(parent, kills, seed):
    import_lance()
    rng, changes, interrupted = random.Random(seed), 0, 0
    for kill in range(kills + 1):
        number, of_folder = divmod(kill, KILLS_OF_A_FOLDER)
        folder = parent / str(number)
        process, receiver = start(folder, seed + kill)
        if rng.random() < 0.1 and kill % 3 and kill < kills:  # while it opens and verifies
            time.sleep(rng.uniform(0, 0.5))
        else:
            require_ready(receiver, process, folder)
            journal = Journal(folder.with_suffix(".journal"))
            before, deadline = acknowledged(journal), time.monotonic() + TIMEOUT
            while kill % 3 == 0 and acknowledged(journal) == before:  # on a slow machine
                if time.monotonic() > deadline or not process.is_alive():
                    require_ready(receiver, process, folder)
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.join()
        while receiver.poll():
            try:
                assert (report := receiver.recv()) == "ready", report
            except EOFError:
                break
        if of_folder == KILLS_OF_A_FOLDER - 1 or kill == kills:
            journal = Journal(folder.with_suffix(".journal"))
            lines = journal.lines()
            changes += acknowledged(journal)
            interrupted += sum("end" in line and not line["end"] for line in lines)
    print(f"{kills} kills, {changes} changes acknowledged or found, {interrupted} undone")
    assert changes > kills / 4


@needs_fork
@pytest.mark.own_process
def test_killed_at_random(tmp_path):
    kill_at_random(tmp_path, 8, 0)


@needs_fork
@pytest.mark.own_process
@pytest.mark.slow
def test_killed_at_random_two_hundred_times(tmp_path):
    kill_at_random(tmp_path, 210, 1)
