"""Rows in, shards out: the one writer of a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.files import (
    UNFINISHED_SUFFIX,
    checksum,
    checksum_of,
    lock,
    rename,
    require_space,
    sync_folder,
    write_file,
)
from mimic_pl.store.manifest import MANIFEST, UNFINISHED, Column, Manifest, Shard, plain
from mimic_pl.store.reader import require_sizes

SHARD_BYTES = 48_000_000
"""Size that a shard should have: large enough to be read fast, small enough to be held in memory a few times."""

MAX_ROWS_PER_SHARD = 4096
"""Rows of a shard at most, so that little work is lost when a build is killed."""

_SHARDS = "shard-*.safetensors"


class StoreWriter:
    """Writes a store, or the missing part of one.

    With ``rows`` the store is built once: nobody can open it before all rows are there, and a build that was killed
    goes on after its last whole shard (:attr:`next_row`), to a folder that is the same to the byte as that of a build
    that was not. Without ``rows`` the store grows: every shard belongs to it as soon as it is full, or at
    :meth:`commit`, and a later writer goes on where this one ends.

    One process writes at a time. Everything on disk is whole at any moment: shards are written under another name,
    synced, and renamed; the manifest comes last.

    Example::

        with StoreWriter(folder, "entity index", {"key": Column(torch.float32, (96,))}, rows=len(keys)) as writer:
            writer.append({"key": keys[writer.next_row :]})

    Args:
        folder: Where the store lies or will lie.
        kind: What it is, in words.
        columns: Its arrays by name.
        rows: How many there will be; ``None`` for a store that grows.
        description: What it is made from, plain JSON values by name; a store or an unfinished build with another
            description is not touched.
        rows_per_shard: Rows of a shard; by default as many as 48 MB hold, and 4,096 at most.
        anew: Delete the store or the unfinished build that is there.
        wait: Seconds to wait for another writer to end; below zero for as long as it takes.

    Raises:
        StoreError: Something else lies in the folder, another process writes there, or there is no room.
    """

    def __init__(
        self,
        folder: Path | str,
        kind: str,
        columns: Mapping[str, Column],
        rows: int | None = None,
        description: Mapping[str, Any] | None = None,
        rows_per_shard: int | None = None,
        anew: bool = False,
        wait: float = 0.0,
    ) -> None:
        self.folder = Path(folder).expanduser()
        size = rows_per_shard or default_rows_per_shard(columns)
        self._manifest = Manifest(kind, plain(description or {}), dict(columns), rows, size)
        self._lock = lock(self.folder, wait)
        try:
            if anew:
                self._clear()
            self._manifest = self._manifest.with_shards(self._found())
            for leftover in self.folder.glob(f"*{UNFINISHED_SUFFIX}"):
                leftover.unlink()
            if rows is not None:
                require_space(self.folder, self.bytes_needed, f"The {kind}")
        except BaseException:
            self.close()
            raise
        self._buffer: dict[str, Tensor] = {}
        self._buffered = 0

    @property
    def next_row(self) -> int:
        """The row that comes next: rows before it are on disk or in memory already."""
        return self._manifest.rows_written + self._buffered

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row takes."""
        return self._manifest.bytes_per_row

    @property
    def rows_per_shard(self) -> int:
        """Rows of a full shard: so many are in memory before they are written."""
        return self._manifest.rows_per_shard

    @property
    def bytes_needed(self) -> int:
        """Bytes that will be written until all rows are there; 0 for a store that grows (see :meth:`bytes_for`)."""
        rows = self._manifest.rows
        return 0 if rows is None else self.bytes_for(rows - self._manifest.rows_written)

    def bytes_for(self, rows: int) -> int:
        """Bytes that so many further rows take on disk, to be announced before they are written."""
        header = 64 + sum(128 + len(name.encode()) for name in self._manifest.columns)
        return rows * self.bytes_per_row + header * -(-rows // self._manifest.rows_per_shard)

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Add rows: for every column a tensor ``[n, *shape]``, on any device, as many as one likes at a time.

        Raises:
            ValueError: They do not fit the columns, or are more than were announced.
            StoreError: There is no room, or the folder cannot be written to.
        """
        count = self._checked(rows)
        for name, column in self._manifest.columns.items():
            if name not in self._buffer:
                self._buffer[name] = torch.empty((self._manifest.rows_per_shard, *column.shape), dtype=column.dtype)
        taken = 0
        while taken < count:
            piece = min(count - taken, self._manifest.rows_per_shard - self._buffered)
            for name, buffer in self._buffer.items():
                buffer[self._buffered : self._buffered + piece] = rows[name][taken : taken + piece]
            self._buffered += piece
            taken += piece
            if self._buffered == self._manifest.rows_per_shard:
                self._write_shard()

    def commit(self) -> None:
        """Make what was appended part of the store; a store of known size must have all of its rows.

        Raises:
            ValueError: Rows are missing.
            StoreError: There is no room, or the folder cannot be written to.
        """
        wanted = self._manifest.rows
        if wanted is not None and self.next_row != wanted:
            raise ValueError(f"the {self._manifest.kind} was announced with {wanted} rows and got {self.next_row}")
        if self._buffered:
            self._write_shard()
        if (self.folder / MANIFEST).exists():
            return
        if wanted is None:
            self._manifest.save(self.folder / MANIFEST)
        else:
            # Once more, for a store without rows, and for one whose build was killed just before this line.
            self._manifest.save(self.folder / UNFINISHED)
            rename(self.folder / UNFINISHED, self.folder / MANIFEST)

    def close(self) -> None:
        """Let other writers in. Rows that fill no shard and were not committed are lost."""
        self._lock.release()

    def __enter__(self) -> StoreWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit, unless an error ended the block: then whole shards are kept, to go on from."""
        try:
            if error is None:
                self.commit()
        finally:
            self.close()

    def _write_shard(self) -> None:
        """Write the buffered rows, and enter the file into the manifest."""
        file = f"shard-{len(self._manifest.shards):05}.safetensors"
        content = safetensors.torch.save({name: buffer[: self._buffered] for name, buffer in self._buffer.items()})
        write_file(self.folder / file, content)
        shard = Shard(file, self._buffered, len(content), checksum_of(content))
        manifest = self._manifest.with_shards((*self._manifest.shards, shard))
        manifest.save(self.folder / (MANIFEST if manifest.rows is None else UNFINISHED))
        self._manifest = manifest
        self._buffered = 0

    def _found(self) -> tuple[Shard, ...]:
        """Whole shards of the store or unfinished build that is there, if it is the same one."""
        for name in (MANIFEST, UNFINISHED):
            path = self.folder / name
            if not path.exists():
                continue
            there = Manifest.load(path)
            differences = there.differences(self._manifest)
            if differences:
                what = f"the {there.kind}" if name == MANIFEST else f"an unfinished build of the {there.kind}"
                raise StoreError(
                    f"{self.folder} holds {what}, which is not the one to be written: {'; '.join(differences)}. "
                    "Choose another folder, or delete this one."
                )
            if name == MANIFEST:
                require_sizes(self.folder, there)
                return there.shards
            return self._whole(there.shards)
        return ()

    def _whole(self, shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
        """Shards up to the first that is not as the unfinished manifest says."""
        for number, shard in enumerate(shards):
            path = self.folder / shard.file
            if not path.exists() or path.stat().st_size != shard.bytes or checksum(path) != shard.crc32:
                return shards[:number]
        return shards

    def _clear(self) -> None:
        """Delete a store or an unfinished build, the manifest first: no moment shows a store without its shards."""
        for name in (MANIFEST, UNFINISHED):
            (self.folder / name).unlink(missing_ok=True)
            sync_folder(self.folder)
        for path in self.folder.glob(_SHARDS):
            path.unlink()

    def _checked(self, rows: Mapping[str, Tensor]) -> int:
        """How many rows these are."""
        columns = self._manifest.columns
        if rows.keys() != columns.keys():
            raise ValueError(f"the store has the columns {sorted(columns)}, and rows came with {sorted(rows)}")
        counts = {len(tensor) for tensor in rows.values()}
        if len(counts) != 1:
            raise ValueError(f"columns of different length: { {name: len(t) for name, t in rows.items()} }")
        for name, tensor in rows.items():
            if Column(tensor.dtype, tuple(tensor.shape[1:])) != columns[name]:
                raise ValueError(f"column {name!r} is {columns[name]}, and got {tensor.dtype} {list(tensor.shape[1:])}")
        (count,) = counts
        wanted = self._manifest.rows
        if wanted is not None and self.next_row + count > wanted:
            raise ValueError(f"the store was announced with {wanted} rows and got {self.next_row + count}")
        return count


def default_rows_per_shard(columns: Mapping[str, Column]) -> int:
    """As many rows as :data:`SHARD_BYTES` hold, and :data:`MAX_ROWS_PER_SHARD` at most."""
    row_bytes = max(1, sum(column.bytes_per_row for column in columns.values()))
    return min(MAX_ROWS_PER_SHARD, max(1, SHARD_BYTES // row_bytes))
