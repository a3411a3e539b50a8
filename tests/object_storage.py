"""A real S3 server as a process of its own, on the loopback interface."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.launch import free_port

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class S3Server:
    """moto's server with a bucket; skips the test if moto is not installed.

    Args:
        environment: Variables for the server.
    """

    def __init__(self, **environment: str) -> None:
        pytest.importorskip("moto.server", reason="moto is not installed (pip install 'moto[server]')")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment or None
        )

    def __enter__(self) -> S3Server:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=10):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    @property
    def client(self) -> Any:
        """An independent client."""
        import boto3

        session = boto3.Session(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url)

    def copy(self, folder: Path, name: str) -> str:
        """Copy a folder into the bucket, as ``aws s3 cp --recursive`` does; returns its address."""
        client = self.client
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"{name}/{path.relative_to(folder).as_posix()}")
        return f"s3://{BUCKET}/{name}"
