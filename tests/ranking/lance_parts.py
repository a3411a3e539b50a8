"""Knowledge bases for indexes on disk, whose states depend only on the order numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from mimic_pl.ranking import IndexBuilder, LanceIndex
from mimic_pl.records import Entity

CPU = torch.device("cpu")
DESCRIPTION = {"model": "a", "text template": "{name}"}


def records(total):
    return [
        Entity(f"Q{n}", f"entity {n} é", {"attr": f"attribute {n}"}, (f"{n}_0.jpg", f"{n}_1.jpg")[: n % 3])
        for n in range(total)
    ]


def states(start, stop):
    positions = torch.arange(start, stop)
    table = torch.sin(positions[:, None] * torch.arange(1, 97)).float()
    return positions, {"text": {"query": table.view(-1, 8, 12), "mask": (table[:, :8] > 0).long()}}


def batches(total, size=10, interrupted_at=None):
    """A function that encodes from the batch with the n-th entity onwards."""

    def encode(first):
        for start in range(first // size * size, total, size):
            if start == interrupted_at:
                raise KeyboardInterrupt
            yield states(start, min(start + size, total))

    return encode


def build(folder: Path, total=95, encode=None, dtype="float32", description=DESCRIPTION, **options) -> LanceIndex:
    return IndexBuilder(dtype, "disk").on_disk(
        folder, records(total), encode or batches(total), CPU, description, **options
    )


def content(index):
    """The content of an index by id, as plain values."""
    found = {}
    for order, block in index.blocks(1000):
        ids, entities = index.ids_of(order), index.entities(order)
        columns = [block.state_hashes["text"], block.finite, *block.states["text"].values()]
        for row, (id, entity) in enumerate(zip(ids, entities, strict=True)):
            found[id] = int(order[row]), entity, [column[row].tolist() for column in columns]
    return found


def data_files(folder):
    return sorted((folder / "data").glob("*.lance"))
