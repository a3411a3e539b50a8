"""Making an index of a knowledge base: in which dtype, and where it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError, MimicError, StoreError
from mimic_pl.ranking.disk import INDEX, DiskIndex, is_finished, part_of, remove_other_parts
from mimic_pl.ranking.index import EntityIndex, MemoryIndex, Shard, to_columns
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.store import Column, StoreWriter
from mimic_pl.units import States

Batches = Callable[[int], Iterable[tuple[Tensor, States]]]
"""From which entity of the shard on -> batches of positions, int64 ``[batch]``, and the states of these entities."""


class Indexer(Recorded):
    """Makes the index of a knowledge base.

    Args:
        dtype: How numbers are kept (see :data:`~mimic_pl.ranking.quantization.IndexDtype`): 19.3, 9.7 or 5.0 kB an
            entity at published sizes.
        storage: ``device`` keeps the index where the model is; ``host`` in the host's memory, moved to the device
            block by block; ``disk`` in a folder that is read in blocks, so that a knowledge base of any size is ranked
            in little memory and encoded once for many runs of ``test`` and ``predict``.
        folder: With ``disk``: where the index lies; ``index`` in the run's folder by default.

    Raises:
        ConfigError: A folder for an index that is not on disk.
    """

    def __init__(
        self,
        dtype: IndexDtype = "float32",
        storage: Literal["device", "host", "disk"] = "device",
        folder: str | None = None,
    ) -> None:
        if folder is not None and storage != "disk":
            raise ConfigError(f"indexer: the folder {folder!r} is for an index on disk, and storage is {storage!r}.")
        self.dtype: IndexDtype = dtype
        self._told = 0
        self.storage = storage
        self.folder = folder

    def in_memory(
        self, num_entities: int, batches: Batches, device: torch.device, shard: Shard | None = None, made_from: str = ""
    ) -> EntityIndex:
        """Encode the knowledge base, or this process's share of it, into memory; batches may come in any order.

        Args:
            num_entities: Entities in the knowledge base.
            batches: Encodes those of the shard.
            device: The model's device.
            shard: What this process holds; all by default.
            made_from: What the states depend on: one value on all processes.

        Raises:
            StoreError: The shares do not add up to the knowledge base, or are not made from the same.
        """
        index = MemoryIndex(num_entities, device, self.dtype, on_host=self.storage == "host", shard=shard)
        for positions, states in batches(0):
            index.put(positions, to_columns(states, self.dtype))
        _require_whole(index, num_entities, index.missing, made_from)
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
        shard: Shard | None = None,
    ) -> EntityIndex:
        """Open the index in a folder; encode what it lacks of the knowledge base, all of it or the rest of a build.

        Several processes write a part each. One that was lost goes on where it was when as many are started again.

        Args:
            folder: Where it lies or will lie.
            num_entities: Entities in the knowledge base.
            batches: Encodes those of the shard, in order: from its n-th on.
            device: The model's device.
            description: What the index depends on, as plain values.
            anew: Replace what lies there.
            shard: What this process encodes and goes through, a stretch of the knowledge base; all by default.

        Raises:
            StoreError: The index there was built by another model or from other data, is being written by another
                process, or there is no room.
        """
        shard = shard or Shard.whole(num_entities)
        wanted = {**description, "dtype": self.dtype, "entities": num_entities}
        processes = shard.processes
        # What the first process sees there holds for all.
        if processes.objects(anew or not is_finished(folder))[0]:
            writers = [rank for rank, held in enumerate(processes.objects(len(shard.positions))) if held]
            error: MimicError | None = None
            try:
                if processes.rank == 0:
                    remove_other_parts(folder, len(writers))
                if processes.rank in writers:
                    part = part_of(folder, writers.index(processes.rank), len(writers))
                    self._write(part, shard, batches, wanted, anew)
            except MimicError as met:
                error = met
            processes.agree(error, device)
        index = DiskIndex(folder, wanted, device, shard)
        _require_whole(index, num_entities, 0, repr(sorted(wanted.items())))
        self._tell(index)
        return index

    def _write(self, folder: Path, shard: Shard, batches: Batches, wanted: Mapping[str, Any], anew: bool) -> None:
        # One batch tells what an entity takes.
        _, states = next(iter(batches(0)))
        columns = {
            name: Column(tensor.dtype, tuple(tensor.shape[1:]))
            for name, tensor in to_columns(states, self.dtype).items()
        }
        rows = len(shard.positions)
        with StoreWriter(folder, INDEX, columns, rows, wanted, anew=anew) as writer:
            rank_zero_info(f"Writing the index to {folder}: {_megabytes(writer.bytes_needed)}.")
            for positions, states in batches(writer.next_row):
                new = torch.searchsorted(shard.positions, positions.cpu()) >= writer.next_row
                columns_of_batch = to_columns(states, self.dtype)
                writer.append({name: tensor[new.to(tensor.device)] for name, tensor in columns_of_batch.items()})

    def _tell(self, index: EntityIndex) -> None:
        """Say once, not after every epoch, what the index takes."""
        if self._told != len(index):
            self._told = len(index)
            size = max(index.processes.objects(index.bytes_per_entity))  # 0 where a process holds no entity
            rank_zero_info(
                f"Index of {len(index):,} entities, {self.dtype} on {self.storage}: "
                f"{size:,} bytes each, {_megabytes(size * len(index))} in all."
            )


def _require_whole(index: EntityIndex, num_entities: int, missing: int, made_from: str) -> None:
    """Check that the processes' shares are all of the knowledge base, each entity once, and made from the same.

    Raises:
        StoreError: They are not.
    """
    processes = index.processes
    held = torch.zeros(num_entities, dtype=torch.int32, device=index.device)
    held[index.positions] = 1
    wrong = int((processes.sum(held) != 1).sum())
    everyone = processes.objects((missing, made_from))
    if wrong or any(missing for missing, _ in everyone):
        raise StoreError(
            f"The index is not whole: of {num_entities} entities {wrong} are held by no process or by several, and "
            f"{sum(missing for missing, _ in everyone)} were not encoded. The data module's entity_dataloader() must "
            "yield every entity once."
        )
    if len({made_from for _, made_from in everyone}) > 1:
        raise StoreError(
            "The processes have encoded the knowledge base with different weights or from different data. Give all of "
            "them the same checkpoint, data and settings."
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
