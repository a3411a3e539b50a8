"""The server under load: latency and throughput by batch size and concurrent requests, and its memory."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mimic_pl.benchmark.encoders import WORDS, build_encoder
from mimic_pl.benchmark.load import Load, load
from mimic_pl.benchmark.report import Line, Row, fact
from mimic_pl.benchmark.settings import Settings
from mimic_pl.errors import MachineError
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.linking import Linker
from mimic_pl.model import MIMIC
from mimic_pl.processor import Processor

BATCHES = (1, 16, 64)
CONCURRENT = (1, 16, 100, 1000)

_START = 180.0
_TOP_K = 10


def serving(settings: Settings) -> Row:
    """Measure ``mimic-pl serve`` with mentions of one sentence and an image, as ``mimic-pl index`` has them.

    Requests of one mention come from other processes over loopback. As many are sent for each line of the table; the
    rate of the same mentions in batches without a server is the reference.
    """
    optional_package("fastapi_offline", "The server", "serve")
    entities = settings.entities or settings.size(8192, 50)
    requests = settings.mentions or settings.size(2000, 40)
    concurrent = CONCURRENT[: settings.size(len(CONCURRENT), 2)]
    rng = random.Random(settings.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linker = _linker(settings, folder, entities, rng)
        records = _records(rng, requests)
        alone = _alone(linker, records)
        bodies = [_body(record) for record in records]
        table: list[dict[str, Any]] = []
        for batch in BATCHES[-settings.size(len(BATCHES), 1) :]:
            with _server(settings, folder, batch) as (port, process):
                load(port, "/link", bodies[:200], 16, 1)  # the first requests load what later ones have
                before = _resident(process)
                for connections in concurrent:
                    own = bodies if connections > 1 else bodies[: max(1, len(bodies) // 10)]
                    measured = load(port, "/link", own, connections, os.cpu_count() or 1)
                    table.append(_line(batch, connections, measured, _resident(process), before))
    best = max(table, key=lambda line: line["requests / s"])
    return {
        "title": "The server under load: one mention with an image in each request",
        "setting": {"entities": entities, "requests": requests, "encoder": settings.encoder, "top_k": _TOP_K},
        "table": table,
        "lines": [
            _compared(f"server, batches of {best['batch']}, {best['concurrent']} concurrent", best, alone),
            fact("memory that the last server has gained", max(0.0, table[-1]["gained MB"]) * 1e6, "B"),
        ],
        "checks": {"requests without links": sum(line["failed"] for line in table)},
    }


def _linker(settings: Settings, folder: Path, entities: int, rng: random.Random) -> Linker:
    encoder = build_encoder(settings.encoder, settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = MIMIC(encoder, Processor(entity_template="{name} [SEP] {attr}")).eval()
    model.save_pretrained(folder / "model")
    records = [{"id": f"Q{n}", "name": _text(rng, 2), "attr": _text(rng, 12)} for n in range(entities)]
    linker = Linker.from_pretrained(folder / "model", settings.device)
    linker.index(records, folder / "kb", show_progress_bar=False)
    return linker.with_knowledge_base(folder / "kb")


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def _records(rng: random.Random, count: int) -> list[dict[str, Any]]:
    images = []
    for _ in range(min(count, 50)):
        pixels, content = Image.effect_noise((250, 200), rng.uniform(5, 60)), io.BytesIO()
        pixels.convert("RGB").save(content, "JPEG")
        images.append(content.getvalue())
    return [{"mention": _text(rng, 1), "sentence": _text(rng, 15), "image": images[n % 50]} for n in range(count)]


def _body(record: dict[str, Any]) -> bytes:
    image = base64.b64encode(record["image"]).decode()
    return json.dumps({"mentions": [{**record, "image": image}], "top_k": _TOP_K}).encode()


def _alone(linker: Linker, records: list[dict[str, Any]]) -> float:
    """Seconds per mention in batches, without a server."""
    few = records[:1000]
    linker.link(few[:64], _TOP_K)
    start = time.perf_counter()
    linker.link(few, _TOP_K)
    return (time.perf_counter() - start) / len(few)


@contextmanager
def _server(settings: Settings, folder: Path, batch: int) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; yields its port and the number of its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mimic_pl", "serve", "--kb", str(folder / "kb"), "--model", str(folder / "model")]
    options = ["--device", settings.device, "--port", str(port), "--limits.batch_size", str(batch)]
    threads = {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env={**os.environ, **threads})
    try:
        deadline = time.monotonic() + _START
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"The server has not started: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10):
            return True
    except OSError:
        return False


def _resident(process: int) -> int:
    """Bytes of memory of a process; 0 where the system does not tell."""
    status = Path(f"/proc/{process}/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def _line(batch: int, connections: int, measured: Load, resident: int, before: int) -> dict[str, Any]:
    return {
        "batch": batch,
        "concurrent": connections,
        "requests / s": measured.rate,
        **{f"p{percent} ms": 1000 * measured.percentile(percent) for percent in (50, 95, 99)},
        "failed": measured.failed,
        "MB": resident / 1e6,
        "gained MB": (resident - before) / 1e6,
    }


def _compared(what: str, best: dict[str, Any], alone: float) -> Line:
    value = 1 / best["requests / s"]
    against = "the linker alone, in batches of 64"
    line = {"what": what, "value": value, "unit": "s", "per": "mention", "against": against, "other": alone}
    return {**line, "ratio": alone / value}
