"""A process of a distributed run is killed: the others say so and end, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.faults.catalogue import told_by_command

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in Linux's /proc")


def children(process: int) -> list[int]:
    """Processes that a process has started, and not yet lost, and that are Python."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"mimic_pl" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end(victim, tmp_path):
    config = tiny.config(tiny.write_set(tmp_path / "set"), tmp_path)
    config["trainer"] |= {"max_epochs": 100_000, "devices": 2, "strategy": "ddp"}
    config["early_stopping"] = {"patience": 1_000_000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mimic_pl", "fit", "--config", "config.yaml"]
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt")):
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.2)
        (second,) = children(first.pid)
        os.kill((first.pid, second)[victim], signal.SIGKILL)
        deadline = time.monotonic() + 60
        code = first.wait(60)
        while Path(f"/proc/{second}").exists():
            assert time.monotonic() < deadline, "the second process goes on without the first"
            time.sleep(0.2)
    finally:
        first.kill()
    told_by_command("test_the_others_end", 10 if victim == 0 else code, (tmp_path / "said").read_text())
