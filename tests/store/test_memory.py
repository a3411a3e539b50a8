"""Memory stays flat, whatever the size of the store: measured in a process of its own, pages of files included."""

from __future__ import annotations

import shutil
import time
from multiprocessing import Queue
from pathlib import Path

import pytest
import torch

from mimic_pl.store import Column, Store, StoreWriter
from tests.launch import FORK, needs_fork


def resident() -> float:
    """Memory of this process in MB, with the pages of mapped files that it has touched."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


def read_all(folder: Path, answer: Queue[tuple[float, int, float]]) -> None:
    """Stream through a store, then pick rows all over it."""
    before, begin = resident(), time.perf_counter()
    store = Store.open(folder, "entity index")
    opened, largest, total = time.perf_counter() - begin, before, 0
    for start in range(0, len(store), 1000):
        total += int(store.slice(start, min(start + 1000, len(store)))["x"][:, ::512].sum())
        largest = max(largest, resident())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        store.select(torch.randint(len(store), (128,), generator=generator))
        largest = max(largest, resident())
    answer.put((largest - before, total, opened))


@needs_fork
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("rows", [40_000])
def test_streaming(tmp_path, rows):
    piece = torch.arange(4000, dtype=torch.int64)[:, None].expand(4000, 9728).to(torch.int8)
    with StoreWriter(tmp_path, "entity index", {"x": Column(torch.int8, (9728,))}, rows) as writer:
        for _ in range(rows // 4000):
            writer.append({"x": piece})
    assert FORK is not None
    answer = FORK.Queue()
    reader = FORK.Process(target=read_all, args=(tmp_path, answer))
    reader.start()
    grown, total, opened = answer.get(timeout=300)
    reader.join()
    shutil.rmtree(tmp_path)
    assert total == int(piece[:, ::512].sum()) * (rows // 4000)
    print(f"{rows * 9728 / 1e9:.2f} GB: {grown:.0f} MB more resident, opened in {opened * 1e3:.1f} ms")
    assert grown < 200
