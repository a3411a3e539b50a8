"""``mimic-pl app`` in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.launch import environment, free_port


class Served:
    """A running page; a context.

    Args:
        folder: Folder with ``kb``, and of its log; its working directory.
        options: Further options.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "app.log"
        command = [sys.executable, "-m", "mimic_pl", "app", "--kb", str(folder / "kb"), "--device", "cpu"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), *options],
                stdout=log,
                stderr=log,
                env=environment(),
                cwd=folder,
                preexec_fn=_heed_interrupts,
            )

    def __enter__(self) -> Served:
        import httpx

        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(self.url).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(self.output())

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        assert "Traceback" not in self.output(), self.output()

    def output(self) -> str:
        return self._log.read_text()


def _heed_interrupts() -> None:
    """Shells let what they run in the background ignore Ctrl-C, and the processes below inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
