"""Program for the tests: run several commands in the same processes.

    torchrun --nproc-per-node 2 -m tests.distributed.commands FILE

FILE holds the commands, a JSON list of lists of arguments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def run(commands: list[list[str]], processes: int, folder: Path) -> str:
    """Run commands on so many processes (gloo); what they print is returned."""
    path = folder / f"commands-{processes}.json"
    path.write_text(json.dumps(commands))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launch, "-m", "tests.distributed.commands", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, "\n".join(line for line in told.splitlines() if "error" in line) + told[-3000:]
    return told


if __name__ == "__main__":
    from mimic_pl.cli import main

    torch.set_num_threads(1)
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        main(arguments)
