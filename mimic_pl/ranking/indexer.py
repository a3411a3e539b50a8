"""Making an index of a knowledge base: in which form, and where it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.ranking.disk import INDEX, DiskIndex
from mimic_pl.ranking.forms import IndexForm
from mimic_pl.ranking.index import EntityIndex, MemoryIndex, to_columns
from mimic_pl.store import Column, Store, StoreWriter
from mimic_pl.units import States

Batches = Callable[[int], Iterable[tuple[Tensor, States]]]
"""From which entity on -> batches of positions, int64 ``[batch]``, and the states of these entities."""


class Indexer:
    """Makes the index of a knowledge base.

    Args:
        form: How numbers are kept (see :data:`~mimic_pl.ranking.forms.IndexForm`): 19.3, 9.7 or 5.0 kB an entity at
            published sizes.
        place: ``device`` keeps the index where the model is; ``host`` in the host's memory, block by block moved to the
            device; ``disk`` in a folder that is read in blocks, so that a knowledge base of any size is ranked in
            little memory and encoded once for many runs of ``test`` and ``predict``.
        folder: With ``disk``: where the index lies; ``index`` in the run's folder by default.

    Raises:
        ConfigError: A folder for an index that is not on disk.
    """

    def __init__(
        self,
        form: IndexForm = "float32",
        place: Literal["device", "host", "disk"] = "device",
        folder: str | None = None,
    ) -> None:
        if folder is not None and place != "disk":
            raise ConfigError(f"indexer: the folder {folder!r} is for an index on disk, and place is {place!r}.")
        self.form: IndexForm = form
        self._told = 0
        self.place = place
        self.folder = folder

    def in_memory(self, num_entities: int, batches: Batches, device: torch.device) -> EntityIndex:
        """Encode the knowledge base into memory; batches may come in any order.

        Args:
            num_entities: Entities in the knowledge base.
            batches: Encodes them.
            device: The model's device.
        """
        index = MemoryIndex(num_entities, device, self.form, on_host=self.place == "host")
        for positions, states in batches(0):
            index.put(positions, to_columns(states, self.form))
        self._tell(index)
        return index

    def on_disk(
        self,
        folder: Path,
        num_entities: int,
        batches: Batches,
        device: torch.device,
        description: Mapping[str, Any],
        anew: bool = False,
    ) -> EntityIndex:
        """Open the index in a folder; encode what it lacks of the knowledge base, all of it or the rest of a build.

        Args:
            folder: Where it lies or will lie.
            num_entities: Entities in the knowledge base.
            batches: Encodes them, in order.
            device: The model's device.
            description: What the index depends on, as plain values.
            anew: Replace what lies there.

        Raises:
            StoreError: The index there was built by another model or from other data, is being written by another
                process, or there is no room.
        """
        wanted = {**description, "form": self.form, "entities": num_entities}
        if anew or not Store.exists(folder):
            # One batch tells what an entity takes.
            _, states = next(iter(batches(0)))
            columns = {
                name: Column(tensor.dtype, tuple(tensor.shape[1:]))
                for name, tensor in to_columns(states, self.form).items()
            }
            with StoreWriter(folder, INDEX, columns, num_entities, wanted, anew=anew) as writer:
                rank_zero_info(f"Writing the index to {folder}: {_megabytes(writer.bytes_needed)}.")
                for positions, states in batches(writer.next_row):
                    new = positions >= writer.next_row
                    columns_of_batch = to_columns(states, self.form)
                    writer.append({name: tensor[new.to(tensor.device)] for name, tensor in columns_of_batch.items()})
        index = DiskIndex(folder, wanted, device)
        self._tell(index)
        return index

    def _tell(self, index: EntityIndex) -> None:
        """Say once, not after every epoch, what the index takes."""
        size = index.bytes_per_entity
        if self._told != len(index):
            self._told = len(index)
            rank_zero_info(
                f"Index of {len(index):,} entities, {self.form} on {self.place}: "
                f"{size:,} bytes each, {_megabytes(size * len(index))} in all."
            )


def fingerprint(*modules: nn.Module) -> str:
    """A hash of all weights of these modules, by name."""
    digest = hashlib.sha256()
    for number, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{number} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
