"""``mimic-pl serve`` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.launch import environment, free_port

TOKEN = "secret"
"""Token of a server that is started with ``--writable``."""

BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Server:
    """A server of the knowledge base ``kb`` in a folder, ready for requests within the block.

    Args:
        folder: The folder; the server logs to ``server.log`` in it.
        options: Of the command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        command = [sys.executable, "-m", "mimic_pl", "serve", "--kb", str(folder / "kb"), "--device", "cpu"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *options], stderr=log, stdout=log,
                env={**environment(), "MIMIC_TOKEN": TOKEN},
            )  # fmt: skip

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=10):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(self.output())

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def output(self) -> str:
        """What it has printed; the line of a request may follow its answer."""
        return self._log.read_text()

    def resident(self) -> int:
        """Bytes of memory that the process has."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
