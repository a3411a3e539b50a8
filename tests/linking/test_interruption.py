"""Killed at any moment, indexing and linking go on where they were, with the results of an uninterrupted command."""

import csv
import json
import os
import random
import re
import shutil
import signal
import time

import pytest

from mimic_pl.formats.link_writer import LinkWriter
from tests import tiny
from tests.launch import RunningCommand, needs_fork, run

pytestmark = needs_fork


@pytest.fixture
def files(tested_run, tmp_path):
    rng = random.Random(0)
    with (tmp_path / "kb.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "name", "attr", "image"])
        pictures = sorted((tested_run.parents[1] / "Tiny" / "kb_image").iterdir())
        for number in range(200):
            rows.writerow([f"E{number}", rng.choice(tiny.NAMES), f"a {rng.choice(tiny.WORDS)}", rng.choice(pictures)])
    lines = [{"mention": rng.choice(tiny.NAMES), "sentence": f"the {rng.choice(tiny.WORDS)} {n}"} for n in range(150)]
    lines[1] = {"sentence": "no mention"}
    lines[40] = {"sentence": "jaguar and amazon", "spans": [[0, 6], [11, 17]]}
    (tmp_path / "mentions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def killed(command, folder, seconds):
    """Run a command, kill it after some time, and return whether it had ended before."""
    running = RunningCommand(command, folder)
    time.sleep(seconds)
    running.send(signal.SIGKILL, [0])
    return running.exit_codes() == [0]


def timed(command, folder):
    """Seconds that a command takes."""
    start = time.monotonic()
    run(command, folder)
    return time.monotonic() - start


def until_done(command, folder, rng, seconds):
    """Kill a command again and again until it ends, first in its middle; begin anew if it ended before any kill."""
    kills, after, out = 0, seconds / 2, folder / command[command.index("--out") + 1]
    while True:
        if not killed(command, folder, after):
            kills += 1
            seconds *= 1.15
        elif kills:
            return
        else:  # the machine is faster now than it was
            shutil.rmtree(out) if out.is_dir() else out.unlink()
            seconds /= 2
        after = rng.uniform(0, seconds)


def index(model, out):
    return ["index", "kb.csv", "--model", str(model), "--out", out, "--batch_size", "8", "--device", "cpu"]


def link(model, out):
    command = ["link", "mentions.jsonl", "--kb", "kb", "--out", out, "--batch_size", "4", "--device", "cpu"]
    return [*command, "--model", str(model)]


@pytest.mark.slow
def test_indexing_and_linking_killed_at_random_moments(tested_run, files):
    rng = random.Random(1)
    seconds_to_index = timed(index(tested_run, "kb"), files)
    seconds_to_link = timed(link(tested_run, "expected.jsonl"), files)
    expected = (files / "expected.jsonl").read_text()
    assert len(expected.splitlines()) == 151
    until_done(link(tested_run, "links.jsonl"), files, rng, seconds_to_link)
    assert (files / "links.jsonl").read_text() == expected, "no mention is lost, doubled or changed"

    until_done(index(tested_run, "again"), files, rng, seconds_to_index)
    command = link(tested_run, "again.jsonl")
    command[command.index("kb")] = "again"
    run(command, files)
    assert (files / "again.jsonl").read_text() == expected, "the same states and the same ties"


def kill_at_the_sixtieth():
    """Have this process killed when it writes the links of the sixtieth mention."""
    write = LinkWriter.write

    def write_or_die(writer, links):
        if writer.written == 59:
            os.kill(os.getpid(), signal.SIGKILL)
        write(writer, links)

    LinkWriter.write = write_or_die


def test_linking_that_is_killed_goes_on(tested_run, files):
    run(index(tested_run, "kb"), files)
    run(link(tested_run, "expected.jsonl"), files)
    running = RunningCommand(link(tested_run, "links.jsonl"), files, before=kill_at_the_sixtieth)
    assert running.exit_codes() == [-signal.SIGKILL]
    assert not (files / "links.jsonl").exists()
    again = RunningCommand([*link(tested_run, "links.jsonl"), "--strict"], files)
    assert again.exit_codes() == [4], "the mention that failed before the kill counts"
    assert "linked earlier" in again.output()
    assert re.search(r"linked +│ +150 ", again.output()) and re.search(r"failed +│ +1 ", again.output()), again.output()
    assert (files / "links.jsonl").read_text() == (files / "expected.jsonl").read_text()
