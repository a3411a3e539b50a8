"""Building the entity index of a knowledge base: dtype, storage, shards."""

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
from mimic_pl.ranges import in_range, one_of
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.ranking.lance_dataset import open_dataset
from mimic_pl.ranking.lance_index import LanceIndex
from mimic_pl.ranking.lance_writer import IndexWriter, mark_complete
from mimic_pl.ranking.memory_index import MemoryIndex
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.records import Entity
from mimic_pl.units import States

Batches = Callable[[int], Iterable[tuple[Tensor, States]]]
"""Yields, from the n-th entity of the shard on, positions in the knowledge base, int64 ``[batch]``, and states."""

Storage = Literal["device", "host", "disk"]


class IndexBuilder(Recorded):
    """Builds the entity index of a knowledge base. Order numbers are positions in the knowledge base.

    Args:
        dtype: Dtype of stored states (see :data:`~mimic_pl.ranking.quantization.IndexDtype`): 19.3, 9.7 or 5.0 kB per
            entity at published sizes.
        storage: ``device`` keeps the index on the model's device; ``host`` in host memory, copied to the device block
            by block; ``disk`` in a folder, as a Lance dataset that is read in blocks, so that a knowledge base of any
            size is ranked in little memory and encoded once for many runs of ``test`` and ``predict``: until the
            weights, a record or the content of an image of the knowledge base changes, which is then an error.
        folder: Folder of an index on ``disk``; ``index`` in the run's folder by default.

    Raises:
        ConfigError: A folder is given for an index that is not on disk.
    """

    @in_range(dtype=one_of(IndexDtype), storage=one_of(Storage))
    def __init__(
        self,
        dtype: IndexDtype = "float32",
        storage: Storage = "device",
        folder: str | None = None,
    ) -> None:
        if folder is not None and storage != "disk":
            raise ConfigError(
                f"index: the folder {folder!r} is only used for an index on disk, but storage is {storage!r}. Remove "
                "folder, or set storage to 'disk'."
            )
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
        provenance: str = "",
    ) -> EntityIndex:
        """Encode the knowledge base, or this process's shard of it, into memory; batches may come in any order.

        Args:
            entities: The knowledge base.
            batches: Encodes the entities of the shard.
            device: The model's device.
            shard: Entities of this process; all by default.
            provenance: What the states depend on, as text; the same on all processes.

        Raises:
            StoreError: The shards do not add up to the knowledge base, or ``provenance`` differs between processes.
        """
        shard = shard or Shard.whole(len(entities))
        index = MemoryIndex(device, self.dtype, on_host=self.storage == "host", shard=shard)
        for positions, states in batches(0):
            index.add([entities[position].id for position in positions.tolist()], states, positions)
        _require_complete(index, len(entities), provenance)
        self._log_size(index)
        return index

    def on_disk(
        self,
        folder: Path,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        description: Mapping[str, Any],
        rebuild: bool = False,
        shard: Shard | None = None,
    ) -> EntityIndex:
        """Open the index in a folder, after encoding the entities that it lacks: all, or the rest of a build.

        Each process writes the entities of its shard. An interrupted build resumes when it is started again, with any
        number of processes.

        Args:
            folder: Folder of the index.
            entities: The knowledge base.
            batches: Encodes the entities of the shard, in order, from the n-th on.
            device: The model's device.
            description: What the index depends on, as plain values.
            rebuild: Replace an existing index.
            shard: Entities that this process encodes and scans, a contiguous range; all by default.

        Raises:
            StoreError: The existing index was built by another model or from other data, another process is writing
                it, or the disk is full.
        """
        shard = shard or Shard.whole(len(entities))
        expected = {**description, "dtype": self.dtype, "number of entities": len(entities)}
        opened = None if rebuild else open_dataset(folder)
        if shard.processes.gather_objects(opened is None or not opened.complete)[
            0
        ]:  # the first process decides for all
            self._write(folder, entities, batches, device, expected, rebuild, shard)
        index = LanceIndex(folder, expected, device, shard)
        _require_complete(index, len(entities), repr(sorted(expected.items())))
        self._log_size(index)
        return index

    def _write(
        self,
        folder: Path,
        entities: Sequence[Entity],
        batches: Batches,
        device: torch.device,
        description: Mapping[str, Any],
        rebuild: bool,
        shard: Shard,
    ) -> None:
        processes = shard.processes
        fields = sorted({field for entity in entities for field in entity.fields})
        with ExitStack() as stack:

            def begin() -> IndexWriter:
                writer = IndexWriter(folder, shard.order, description, processes.rank, rebuild, fields)
                return stack.enter_context(writer)

            def write() -> None:
                if not len(writer.missing):
                    return
                for positions, states in batches(int(torch.searchsorted(shard.order, writer.missing[0]))):
                    missing = torch.isin(positions.cpu(), writer.missing)
                    new = positions.cpu()[missing]
                    mask = missing.to(positions.device)
                    columns = {name: column[mask] for name, column in to_columns(states, self.dtype).items()}
                    writer.append([entities[position] for position in new.tolist()], new, columns)
                writer.flush()

            # The first process deletes what is rebuilt before any other starts.
            first = processes.run_together(lambda: None if processes.rank else begin(), device)
            writer = processes.run_together(lambda: first or begin(), device)
            processes.run_together(write, device)
            processes.run_together(lambda: None if processes.rank else mark_complete(folder), device)

    def _log_size(self, index: EntityIndex) -> None:
        """Log the size of the index, once rather than after every epoch."""
        if self._logged_size != len(index):
            self._logged_size = len(index)
            size = max(index.processes.gather_objects(index.bytes_per_entity))  # 0 on a process without entities
            rank_zero_info(
                f"Index of {len(index):,} entities, {self.dtype} on {self.storage}: "
                f"{size:,} bytes each, {readable_bytes(size * len(index))} in total."
            )


def _require_complete(index: EntityIndex, num_entities: int, provenance: str) -> None:
    """Check that the shards cover every entity exactly once and were built with the same weights and data.

    Raises:
        StoreError: They do not, or were not.
    """
    processes = index.processes
    count = torch.zeros(num_entities, dtype=torch.int32, device=index.device)
    count[index.order] = 1
    wrong = int((processes.sum(count) != 1).sum())
    if wrong:
        raise StoreError(
            f"The index is incomplete: {wrong} of {num_entities} entities are on no process or on several. The "
            "entity_dataloader() of the data module must yield every entity exactly once."
        )
    if len(set(processes.gather_objects(provenance))) > 1:
        raise StoreError(
            "The processes encoded the knowledge base with different weights or from different data. Start all of them "
            "with the same checkpoint, data and settings."
        )


def fingerprint(*modules: nn.Module, of_entities: bool = False) -> str:
    """Hash of the names and values of all weights of these modules, without what units know of a knowledge base.

    Args:
        modules: The modules.
        of_entities: Only of weights on which entities' states depend. What only scores depend on (``scoring_only`` of
            units and matcher) may change without encoding entities again.
    """
    digest = hashlib.sha256()
    for number, module in enumerate(modules):
        names = ("of_knowledge_base", "scoring_only") if of_entities else ("of_knowledge_base",)
        left_out = {
            f"{prefix}.{own}".removeprefix(".")
            for prefix, part in module.named_modules()
            for name in names
            for own in getattr(part, name, ())
        }
        for name, tensor in sorted(module.state_dict().items()):
            if name in left_out:
                continue
            digest.update(f"{number} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
