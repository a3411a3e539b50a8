"""Building the index of a knowledge base: in which dtype, and where it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.files import readable_bytes
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.ranking.lance_index import LanceIndex
from mimic_pl.ranking.lance_writer import PartWriter, is_published, publish
from mimic_pl.ranking.memory_index import MemoryIndex
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.records import Entity
from mimic_pl.units import States

Batches = Callable[[int], Iterable[tuple[Tensor, States]]]
"""From which entity of the shard on -> batches of positions in the knowledge base, int64 ``[batch]``, and states."""


class IndexBuilder(Recorded):
    """Builds the index of a knowledge base, whose entities have their positions as order numbers.

    Args:
        dtype: How numbers are stored (see :data:`~mimic_pl.ranking.quantization.IndexDtype`): 19.3, 9.7 or 5.0 kB an
            entity at published sizes.
        storage: ``device`` keeps the index where the model is; ``host`` in the host's memory, moved to the device
            block by block; ``disk`` in a folder, as a Lance dataset that is read in blocks, so that a knowledge base of
            any size is ranked in little memory and encoded once for many runs of ``test`` and ``predict``.
        folder: With ``disk``: where the index is; ``index`` in the run's folder by default.

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
            raise ConfigError(f"index: the folder {folder!r} is for an index on disk, and storage is {storage!r}.")
        self.dtype: IndexDtype = dtype
        self.storage = storage
        self.folder = folder
        self._logged_size = 0

    def in_memory(
        self,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        shard: Shard | None = None,
        made_from: str = "",
    ) -> EntityIndex:
        """Encode the knowledge base, or this process's shard of it, into memory; batches may come in any order.

        Args:
            entities: The knowledge base.
            batches: Encodes those of the shard.
            device: The model's device.
            shard: What this process holds; all by default.
            made_from: What the states depend on: one value on all processes.

        Raises:
            StoreError: The shards do not add up to the knowledge base, or are not made from the same.
        """
        shard = shard or Shard.whole(len(entities))
        index = MemoryIndex(device, self.dtype, on_host=self.storage == "host", shard=shard)
        for positions, states in batches(0):
            index.add([entities[position].id for position in positions.tolist()], states, positions)
        _require_complete(index, len(entities), made_from)
        self._log_size(index)
        return index

    def on_disk(
        self,
        folder: Path,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        description: Mapping[str, Any],
        anew: bool = False,
        shard: Shard | None = None,
    ) -> EntityIndex:
        """Open the index in a folder; encode what it lacks of the knowledge base, all of it or the rest of a build.

        Several processes write a part each, and one commit publishes all parts. One that was lost goes on where it was
        when as many are started again.

        Args:
            folder: Where it is or will be.
            entities: The knowledge base.
            batches: Encodes those of the shard, in order: from its n-th on.
            device: The model's device.
            description: What the index depends on, as plain values.
            anew: Replace what is there.
            shard: What this process encodes and goes through, a stretch of the knowledge base; all by default.

        Raises:
            StoreError: The index there was built by another model or from other data, is being written by another
                process, or there is no room.
        """
        shard = shard or Shard.whole(len(entities))
        wanted = {**description, "dtype": self.dtype, "number of entities": len(entities)}
        # What the first process sees there holds for all.
        if shard.processes.gather_objects(anew or not is_published(folder))[0]:
            self._write(folder, entities, batches, device, wanted, anew, shard)
        index = LanceIndex(folder, wanted, device, shard)
        _require_complete(index, len(entities), repr(sorted(wanted.items())))
        self._log_size(index)
        return index

    def _write(
        self,
        folder: Path,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        description: Mapping[str, Any],
        anew: bool,
        shard: Shard,
    ) -> None:
        processes, rows = shard.processes, len(shard.order)
        writers = [rank for rank, local in enumerate(processes.gather_objects(rows)) if local]
        part = writers.index(processes.rank) if rows else -1
        with ExitStack() as locked:

            def begin() -> PartWriter:
                writer = PartWriter(folder, part, len(writers), rows, description, anew)
                return locked.enter_context(writer)

            def write() -> PartWriter | None:
                if not rows:
                    return None
                writer = first if first is not None else begin()
                if writer.next_row < rows:
                    for positions, states in batches(writer.next_row):
                        new = torch.searchsorted(shard.order, positions.cpu()) >= writer.next_row
                        chosen = positions.cpu()[new]
                        columns = to_columns(states, self.dtype)
                        records = [entities[position] for position in chosen.tolist()]
                        on = new.to(positions.device)
                        writer.append(records, chosen, {name: column[on] for name, column in columns.items()})
                writer.flush()
                return writer

            # The first one removes what is left of other builds before anyone writes.
            first = processes.run_together(lambda: begin() if part == 0 else None, device)
            own = processes.run_together(write, device)
            fragments = [f for some in processes.gather_objects(own.fragments if own else []) for f in some]

            def commit() -> None:
                if part == 0:
                    assert own is not None and own.format is not None, "the first part has rows"
                    publish(folder, own.format, fragments)

            processes.run_together(commit, device)

    def _log_size(self, index: EntityIndex) -> None:
        """Log once, not after every epoch, how large the index is."""
        if self._logged_size != len(index):
            self._logged_size = len(index)
            size = max(index.processes.gather_objects(index.bytes_per_entity))  # 0 where a process holds no entity
            rank_zero_info(
                f"Index of {len(index):,} entities, {self.dtype} on {self.storage}: "
                f"{size:,} bytes each, {readable_bytes(size * len(index))} in all."
            )


def _require_complete(index: EntityIndex, num_entities: int, made_from: str) -> None:
    """Check that the processes' shards are all of the knowledge base, each entity once, and made from the same.

    Raises:
        StoreError: They are not.
    """
    processes = index.processes
    found = torch.zeros(num_entities, dtype=torch.int32, device=index.device)
    found[index.order] = 1
    wrong = int((processes.sum(found) != 1).sum())
    if wrong:
        raise StoreError(
            f"The index is incomplete: {wrong} of {num_entities} entities are held by no process or by several. The "
            "entity_dataloader() of the data module must yield every entity once."
        )
    if len(set(processes.gather_objects(made_from))) > 1:
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
