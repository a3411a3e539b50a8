"""Writing an entity index to disk: processes append rows to one Lance dataset, which is then marked complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.files import lock_folder, readable_bytes, require_space, write_error
from mimic_pl.ranking.lance_dataset import (
    COMPLETE,
    VERSIONS,
    OpenDataset,
    address_of,
    dataset_exists,
    lance,
    open_dataset,
    reading,
)
from mimic_pl.ranking.lance_rows import INDEX, ORDER, RowFormat, differences
from mimic_pl.records import Entity

FRAGMENT_BYTES = 48_000_000
"""Target size of a fragment: large enough to be read fast, small enough for a few copies in memory."""

MAX_ROWS_PER_FRAGMENT = 4096
"""Maximum rows per fragment, so that little work is lost when a build is killed."""

_FOLDERS = (VERSIONS, "_transactions", "_deletions", "data")
"""Folders of a dataset."""

_DELETED_VERSIONS = "_versions.deleted"
"""Name of the folder of manifests while the dataset is being deleted."""

WRITER_LOCK = ".writer-{}.lock"
"""Name of the file that a writer locks, by its number; the first writer, 0, is the only one after the first build."""


class IndexWriter:
    """Appends a process's rows to an index, or those of them that are missing.

    Every append is a commit: what was appended survives a kill at any moment, and the same build, with any number of
    processes, resumes with what is missing. The index can be read once :func:`mark_complete` was called.

    Args:
        folder: Folder of the index.
        order: Order numbers of the rows that this process writes, int64 ``[local]``.
        description: What the index is made from, plain JSON values by name; an unfinished index with another
            description is not touched.
        number: Number of the process, from 0; the first one must be constructed before the others.
        rebuild: Delete the index in the folder.
        fields: Names of the text fields of all entities of the index, the same on all processes.

    Attributes:
        missing: Order numbers that are not on disk yet, int64 ``[missing]``.

    Raises:
        StoreError: The folder contains an unfinished index of something else, another process is writing to it, or it
            is not writable.
    """

    def __init__(
        self,
        folder: Path,
        order: Tensor,
        description: Mapping[str, Any],
        number: int = 0,
        rebuild: bool = False,
        fields: Iterable[str] = (),
    ) -> None:
        self.folder = folder
        self.fields = tuple(fields)
        self.description = dict(description)
        self._buffer: list[tuple[Sequence[Entity], Tensor, Mapping[str, Tensor]]] = []
        self._format: RowFormat | None = None
        self._lock = lock_folder(folder, 0.0, WRITER_LOCK.format(number))
        try:
            if number == 0:
                for path in folder.glob(WRITER_LOCK.format("*")):
                    if path.name != WRITER_LOCK.format(number):  # a process of another build may have survived
                        lock_folder(folder, 0.0, path.name).release()
                remove_unfinished(folder)
                finish_deletion(folder)
                if rebuild:
                    delete_dataset(folder)
            self.missing = self._missing(order.cpu())
        except BaseException:
            self.close()
            raise

    def append(self, entities: Sequence[Entity], order: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Add rows.

        Args:
            entities: Their records.
            order: Their order numbers, int64 ``[n]``.
            columns: Their state columns, ``[n, ...]``, on any device.

        Raises:
            StoreError: The disk is full, or the folder is not writable.
        """
        if self._format is None:
            self._format = RowFormat.of(columns, self.description, self.fields)
            size = len(self.missing) * self._format.bytes_per_entity
            rank_zero_info(f"Writing the index to {self.folder}: {readable_bytes(size)}.")
            require_space(self.folder, size, f"The {INDEX}")
            self._create_dataset(self._format)
        self._buffer.append((entities, order.cpu(), {name: tensor.cpu() for name, tensor in columns.items()}))
        rows = sum(len(some) for some, _, _ in self._buffer)
        if rows >= rows_per_fragment(self._format):
            self.flush()

    def flush(self) -> None:
        """Write the rows in memory to disk.

        Raises:
            StoreError: The disk is full, or the folder is not writable.
        """
        if not self._buffer:
            return
        assert self._format is not None, "rows have a format"
        entities = [entity for some, _, _ in self._buffer for entity in some]
        order = torch.cat([numbers for _, numbers, _ in self._buffer])
        columns = {name: torch.cat([some[name] for _, _, some in self._buffer]) for name in self._format.columns}
        table = self._format.table(entities, order, columns)
        append_table(self.folder, table)
        self._buffer.clear()

    def close(self) -> None:
        """Release the lock; rows that are only in memory are lost."""
        self._lock.release()

    def __enter__(self) -> IndexWriter:
        """The writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self.close()

    def _create_dataset(self, row_format: RowFormat) -> None:
        # Appends of several processes do not conflict, but creating the dataset does.
        with writing(self.folder), FileLock(self.folder / ".create.lock"):
            if not dataset_exists(self.folder):
                lance().write_dataset(row_format.schema.empty_table(), address_of(self.folder), mode="create")

    def _missing(self, order: Tensor) -> Tensor:
        opened = open_dataset(self.folder)
        if opened is None:
            return order
        if opened.complete:
            raise StoreError(f"Another process has just completed the {INDEX} in {self.folder}. Start again to use it.")
        if other := differences(opened.format.description, self.description):
            raise StoreError(
                f"{self.folder} contains an unfinished {INDEX}, which was begun for {other}. Choose another folder, or "
                "delete this one."
            )
        with reading(self.folder):
            written = opened.dataset.to_table(columns=[ORDER]).column(ORDER).to_numpy()
        return order[~torch.isin(order, torch.from_numpy(written))]


def rows_per_fragment(row_format: RowFormat) -> int:
    """Rows that are written at once."""
    return min(MAX_ROWS_PER_FRAGMENT, max(1, FRAGMENT_BYTES // max(1, row_format.bytes_per_entity)))


def append_table(folder: Path, table: pa.Table) -> None:
    """Append rows to a dataset, in one commit.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
    """
    with writing(folder, table.nbytes):
        lance().write_dataset(table, address_of(folder), mode="append", max_rows_per_file=max(1, len(table)))


def write_fragments(opened: OpenDataset, folder: Path, table: pa.Table) -> list[str]:
    """Write rows that are no part of a dataset until :func:`append_fragments` adds them, maybe in another process.

    Until then nobody reads them; if that never happens, :func:`mark_complete` removes their files.

    Args:
        opened: The dataset.
        folder: Its folder.
        table: The rows.

    Returns:
        What Lance must know of the fragments, as JSON.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
    """
    with writing(folder, table.nbytes):
        written = lance().fragment.write_fragments(
            table, opened.dataset, mode="append", max_rows_per_file=rows_per_fragment(opened.format)
        )
        return [json.dumps(fragment.to_json()) for fragment in written]


def append_fragments(folder: Path, fragments: Sequence[str], version: int) -> None:
    """Add fragments of :func:`write_fragments` to a dataset, in one commit.

    Args:
        folder: The folder.
        fragments: The fragments.
        version: Version of the dataset that they were written for.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
    """
    library = lance()
    with writing(folder):
        read = [library.fragment.FragmentMetadata.from_json(fragment) for fragment in fragments]
        library.LanceDataset.commit(address_of(folder), library.LanceOperation.Append(read), read_version=version)


def mark_complete(folder: Path) -> None:
    """Make an index readable, once all processes have written their rows.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
    """
    with writing(folder):
        dataset = lance().dataset(address_of(folder))
        dataset.update_config({COMPLETE: "true"})
        # Also removes files of killed writes: no other process writes now.
        dataset.cleanup_old_versions(timedelta(0), delete_unverified=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files that killed writers have not finished, which may be large; no other process may be writing."""
    with writing(folder):
        for name in _FOLDERS:
            for path in (*folder.glob(f"{name}/.tmp*"), *folder.glob(f"{name}/*#*")):
                path.unlink()


def delete_dataset(folder: Path) -> None:
    """Delete the dataset in a folder. After a kill, there is either the whole dataset or none."""
    deleted = folder / _DELETED_VERSIONS
    with writing(folder):
        if (folder / VERSIONS).exists():
            if deleted.exists():
                shutil.rmtree(deleted)
            os.replace(folder / VERSIONS, deleted)
        if deleted.exists():
            for name in (*_FOLDERS, _DELETED_VERSIONS):  # its own mark last
                if (folder / name).exists():
                    shutil.rmtree(folder / name)


def finish_deletion(folder: Path) -> None:
    """Delete what a process that was killed while it deleted the dataset in a folder has left."""
    if (folder / _DELETED_VERSIONS).exists() and not dataset_exists(folder):
        delete_dataset(folder)


@contextmanager
def writing(folder: Path, size: int = 0) -> Iterator[None]:
    """Turn errors of Lance and the operating system, while ``size`` bytes are written, into a StoreError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # Lance reports errors as text.
        full = "No space left on device" in str(error)
        if not isinstance(error, OSError) or error.errno is None:
            raise write_error(OSError(errno.ENOSPC if full else errno.EIO, str(error)), folder, size) from error
        raise write_error(error, folder, size) from error
