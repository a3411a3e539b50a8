"""A small store of every type of number, and the folder's content as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mimic_pl.store import Column, StoreWriter

KIND = "entity index"
ROWS = 103
COLUMNS = {
    "text/query": Column(torch.bfloat16, (5, 3)),
    "bias": Column(torch.float32),
    "half": Column(torch.float16, (2,)),
    "double": Column(torch.float64, (1, 2)),
    "small": Column(torch.int8, (7,)),
    "short": Column(torch.int16, (2, 2)),
    "number": Column(torch.int32, (3,)),
    "position": Column(torch.int64),
    "pixels": Column(torch.uint8, (3, 2, 2)),
    "mask": Column(torch.bool, (4,)),
}


def content(rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Rows whose bits are drawn, except that floating point numbers are finite."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, column in COLUMNS.items():
        numbers = torch.randint(-100, 100, (rows, *column.shape), generator=generator)
        made[name] = (numbers / 7).to(column.dtype) if column.dtype.is_floating_point else numbers.to(column.dtype)
    return made


def write(folder: Path, batch: int = 9, rows: int = ROWS, rows_per_shard: int = 16, **options) -> Path:
    made = content(rows)
    with StoreWriter(folder, KIND, COLUMNS, rows, rows_per_shard=rows_per_shard, **options) as writer:
        for start in range(writer.next_row, rows, batch):
            writer.append({name: tensor[start : start + batch] for name, tensor in made.items()})
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "index", description={"model": "abc", "text template": "{name} [SEP] {attr}"})
