"""Memory stays flat, whatever the size of the store: measured in a process of its own, pages of files included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimic_pl.store import Column, StoreWriter

READ = """
import re, sys, time
import torch
from mimic_pl.store import Store

def resident(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 1e3

Store.open(sys.argv[1], "entity index").slice(0, 1)
before = resident("VmRSS")
begin = time.perf_counter()
store = Store.open(sys.argv[1], "entity index")
opened = time.perf_counter() - begin
largest = total = 0
begin = time.perf_counter()
for start in range(0, len(store), 1000):
    total += int(store.slice(start, min(start + 1000, len(store)))["x"][:, ::512].sum())
    largest = max(largest, resident("VmRSS"))
streamed = time.perf_counter() - begin
generator = torch.Generator().manual_seed(0)
for _ in range(20):
    store.select(torch.randint(len(store), (128,), generator=generator))
    largest = max(largest, resident("VmRSS"))
print(largest - before, total, opened, streamed)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_streaming(tmp_path):
    read(tmp_path, rows=40_000)


def read(folder: Path, rows: int) -> None:
    """Write ``rows`` of 9.7 kB and stream through them."""
    piece = torch.arange(4000, dtype=torch.int64)[:, None].expand(4000, 9728).to(torch.int8)
    with StoreWriter(folder, "entity index", {"x": Column(torch.int8, (9728,))}, rows) as writer:
        for _ in range(rows // 4000):
            writer.append({"x": piece})
    answer = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert answer.returncode == 0, answer.stderr
    grown, total, opened, streamed = map(float, answer.stdout.split())
    assert total == int(piece[:, ::512].sum()) * (rows // 4000)
    assert grown < 200, f"{grown:.0f} MB more than in the beginning"
    print(
        f"{rows * 9.728e-6:.2f} GB: {grown:.0f} MB resident, opened in {opened * 1e3:.1f} ms, read in {streamed:.2f} s"
    )
