"""Metrics of a server for Prometheus."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ServerMetrics:
    """Counters of requests, batches and links.

    With several worker processes, which share the folder ``PROMETHEUS_MULTIPROC_DIR``, the figures are those of all.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("mimic_requests", "Requests.", ["method", "route", "status"], registry=own)
        self.seconds = Histogram(
            "mimic_request_seconds", "Seconds per request.", ["route"], buckets=_SECONDS, registry=own
        )
        buckets = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch = Histogram("mimic_batch_mentions", "Mentions linked at once.", buckets=buckets, registry=own)
        self.links = Counter("mimic_links", "Mentions by outcome: linked, nil, failed.", ["outcome"], registry=own)
        self.waiting = Gauge(
            "mimic_waiting_mentions",
            "Mentions that wait or are being linked.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.entities = Gauge(
            "mimic_entities", "Entities of the knowledge base.", multiprocess_mode="max", registry=own
        )
        self.version = Gauge("mimic_version", "Version of the knowledge base.", multiprocess_mode="max", registry=own)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        _forget_dead_processes(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_processes(folder: Path) -> None:
    """Of a worker that was killed nothing waits any more, but its file still says so."""
    for process in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}:
        if not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
