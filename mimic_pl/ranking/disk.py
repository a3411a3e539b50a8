"""An entity index on disk, read in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic_pl.ranking.index import EntityIndex
from mimic_pl.store import Store

INDEX = "entity index"
"""The kind of store that an index is."""


class DiskIndex(EntityIndex):
    """An index in a folder: opening reads no entity, and going through it keeps memory flat.

    Args:
        folder: Where it lies.
        expects: Values that its description must have: the model's fingerprint, the text template, and so on.
        device: Where blocks are handed out.

    Raises:
        StoreError: There is none, it is unfinished or damaged, or it was built by another model or from other data.
    """

    def __init__(
        self, folder: Path | str, expects: Mapping[str, Any] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(device)
        self.store = Store.open(folder, INDEX, expects)

    def __len__(self) -> int:
        """Number of entities."""
        return len(self.store)

    @property
    def bytes_per_entity(self) -> int:
        """Bytes that one entity takes on disk, kinds included."""
        return self.store.bytes_per_row

    def _columns(self, start: int, stop: int) -> Mapping[str, Tensor]:
        return self.store.slice(start, stop)

    def _rows(self, positions: Tensor) -> Mapping[str, Tensor]:
        return self.store.select(positions)
