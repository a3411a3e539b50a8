"""An entity index on disk, read where it is looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.files import lock
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.store import Store

INDEX = "entity index"
"""The kind of store that an index is."""

_PART = re.compile(r"part-(\d+)-of-(\d+)")


class DiskIndex(EntityIndex):
    """An index in a folder: opening reads no entity, and going through it keeps memory flat.

    Each of the processes that built it has written a part, ``folder/part-2-of-3``; any number of them can read it.

    Args:
        folder: Where it lies.
        expects: Values that its description must have: the model's fingerprint, the text template, and so on.
        device: Where blocks are handed out.
        shard: What this process goes through; all of it by default.

    Raises:
        StoreError: There is none, it is unfinished or damaged, or it was built by another model or from other data.
    """

    def __init__(
        self,
        folder: Path | str,
        expects: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        shard: Shard | None = None,
    ) -> None:
        self.stores = [Store.open(part, INDEX, expects) for part in _parts(Path(folder).expanduser())]
        self._starts = np.cumsum([0, *map(len, self.stores)])
        super().__init__(shard or Shard.whole(len(self)), device)
        if shard is not None and shard.total != len(self):
            raise StoreError(
                f"The parts of the {INDEX} in {folder} have {len(self)} entities together, and the knowledge base has "
                f"{shard.total}. Delete the folder, and it is built again."
            )

    def __len__(self) -> int:
        """Entities in the knowledge base."""
        return int(self._starts[-1])

    @property
    def bytes_per_entity(self) -> int:
        """Bytes that one entity takes on disk, state hashes included."""
        return self.stores[0].bytes_per_row

    def _columns(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return self._at(self.positions[start:stop])

    def _rows(self, rows: Tensor) -> Mapping[str, Tensor]:
        return self._at(self.positions[rows])

    def _at(self, positions: Tensor) -> Mapping[str, Tensor]:
        """Columns of the entities at these positions, ``[n, ...]``."""
        positions = positions.cpu()
        which = torch.from_numpy(np.searchsorted(self._starts, positions.numpy(), side="right") - 1)
        found: dict[str, Tensor] = {}
        for number in which.unique().tolist():  # type: ignore[no-untyped-call]
            own = which == number
            columns = self.stores[number].select(positions[own] - int(self._starts[number]))
            if own.all():
                return columns
            for name, tensor in columns.items():
                whole = found.setdefault(name, tensor.new_empty((len(positions), *tensor.shape[1:])))
                whole[own] = tensor
        return found


def part_of(folder: Path, rank: int, count: int) -> Path:
    """Where a process writes its part of an index."""
    return folder / f"part-{rank + 1}-of-{count}"


def is_finished(folder: Path) -> bool:
    """Whether there is an index, and all of it."""
    return any(_whole(count, parts) for count, parts in _begun(folder).items())


def remove_other_parts(folder: Path, count: int) -> None:
    """Delete what another number of processes than ``count`` has written.

    Raises:
        StoreError: It is being written to.
    """
    for other, parts in _begun(folder).items():
        if other != count:
            for part in parts.values():
                lock(part, 0.0).release()
                shutil.rmtree(part)


def _parts(folder: Path) -> list[Path]:
    """The parts of an index, in the order of their entities; of an unfinished one those to be told about."""
    begun = _begun(folder)
    for count, parts in begun.items():
        if _whole(count, parts):
            return [parts[number] for number in sorted(parts)]
    return [part for parts in begun.values() for part in parts.values() if not Store.exists(part)] or [folder]


def _whole(count: int, parts: Mapping[int, Path]) -> bool:
    return len(parts) == count and all(map(Store.exists, parts.values()))


def _begun(folder: Path) -> dict[int, dict[int, Path]]:
    """Parts in a folder, finished or not, by how many there are to be and by number."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("part-*-of-*"):
        if named := _PART.fullmatch(path.name):
            found.setdefault(int(named[2]), {})[int(named[1])] = path
    return found
