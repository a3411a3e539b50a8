"""Writing an entity index to disk: each process writes fragments, and one commit publishes them all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.files import (
    checksum,
    checksum_of,
    lock_folder,
    readable_bytes,
    require_space,
    sync_folder,
    write_error,
    write_file,
)
from mimic_pl.ranking.lance_rows import INDEX, RowFormat, differences, lance
from mimic_pl.records import Entity

FRAGMENT_BYTES = 48_000_000
"""Size that a fragment should have: large enough to be read fast, small enough to be held in memory a few times."""

MAX_ROWS_PER_FRAGMENT = 4096
"""Rows of a fragment at most, so that little work is lost when a build is killed."""

_JOURNALS = "_unfinished"
"""Folder of the journals in which each process enters the fragments that it has written, until they are published."""

_JOURNAL = re.compile(r"part-(\d+)-of-(\d+)\.json")
_LOCK = ".part-{}.lock"


def is_published(folder: Path) -> bool:
    """Whether there is a dataset, and all of it."""
    return any((folder / "_versions").glob("*.manifest"))


def rows_written(folder: Path) -> int:
    """Rows in the fragments of an unfinished index."""
    return sum(entry["rows"] for journal in _journals(folder) for entry in _load(journal)["fragments"])


def data_file(folder: Path, name: str) -> Path:
    """Where Lance keeps a data file of a dataset."""
    return folder / "data" / name


class PartWriter:
    """Writes one process's part of an index, or what is missing of it.

    A part is written in fragments. Each is synced and then entered into the part's journal: what a journal names
    survives a kill at any moment, and the next writer goes on after it. All become readable at once, by
    :func:`publish`.

    One process writes a part at a time, and the writer of the first part holds the folder until it is closed.

    Args:
        folder: Where the index will be.
        part: Number of the part, from 0; the first one must be begun before the others.
        parts: How many there are.
        rows: Rows of this part.
        description: What the index is made from, plain JSON values by name; an unfinished index with another
            description is not touched.
        anew: Delete the index that is in the folder.

    Raises:
        StoreError: The folder holds an unfinished index of something else, another process writes there, or the folder
            cannot be written to.
    """

    def __init__(
        self, folder: Path, part: int, parts: int, rows: int, description: Mapping[str, Any], anew: bool = False
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.description = dict(description)
        self._journal = folder / _JOURNALS / f"part-{part + 1}-of-{parts}.json"
        self._lock = lock_folder(folder, 0.0, _LOCK.format(part + 1))
        try:
            with _writing(folder):
                if part == 0:
                    _remove_leftovers(folder, parts, anew)
                self._journal.parent.mkdir(exist_ok=True)
            self.format, self._fragments = self._found()
        except BaseException:
            self.close()
            raise
        self._buffer: list[tuple[Sequence[Entity], Tensor, Mapping[str, Tensor]]] = []
        self._announced = False

    @property
    def next_row(self) -> int:
        """The row of this part that comes next: those before it are on disk or in memory."""
        return sum(entry["rows"] for entry in self._fragments) + self._buffered

    @property
    def fragments(self) -> list[dict[str, Any]]:
        """The fragments that are on disk, for :func:`publish`."""
        return [entry["fragment"] for entry in self._fragments]

    def append(self, entities: Sequence[Entity], order: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Add rows.

        Args:
            entities: Their records.
            order: Their order numbers, int64 ``[n]``.
            columns: Their state columns, ``[n, ...]``, on any device.

        Raises:
            StoreError: There is no room, or the folder cannot be written to.
        """
        if self.format is None:
            self.format = RowFormat.of(columns, self.description)
        if not self._announced:
            self._announced = True
            size = (self.rows - self.next_row) * self.format.bytes_per_entity
            rank_zero_info(f"Writing the index to {self.folder}: {readable_bytes(size)}.")
            require_space(self.folder, size, f"The {INDEX}")
        self._buffer.append((entities, order.cpu(), {name: tensor.cpu() for name, tensor in columns.items()}))
        if self._buffered >= min(MAX_ROWS_PER_FRAGMENT, max(1, FRAGMENT_BYTES // self.format.bytes_per_entity)):
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in memory to a fragment.

        Raises:
            StoreError: There is no room, or the folder cannot be written to.
        """
        if not self._buffer:
            return
        assert self.format is not None, "rows have a format"
        entities = [entity for some, _, _ in self._buffer for entity in some]
        order = torch.cat([numbers for _, numbers, _ in self._buffer])
        columns = {name: torch.cat([some[name] for _, _, some in self._buffer]) for name in self.format.columns}
        table = self.format.table(entities, order, columns)
        with _writing(self.folder, table.nbytes):
            (fragment,) = lance().fragment.write_fragments(
                table, str(self.folder), mode="create", max_rows_per_file=len(table)
            )
            entry = {"fragment": fragment.to_json(), "rows": len(table)}
            path = _path_of(self.folder, entry)
            _sync(path)
            sync_folder(path.parent)
            entry |= {"bytes": path.stat().st_size, "crc32": checksum(path)}
        content = {"rows": self.rows, "format": self.format.dumps(), "fragments": [*self._fragments, entry]}
        write_file(self._journal, json.dumps({**content, "crc32": _checksum(content)}).encode())
        self._fragments.append(entry)
        self._buffer.clear()

    def close(self) -> None:
        """Let other writers in; rows that are in memory only are lost."""
        self._lock.release()

    def __enter__(self) -> PartWriter:
        """The writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let other writers in."""
        self.close()

    @property
    def _buffered(self) -> int:
        return sum(len(entities) for entities, _, _ in self._buffer)

    def _found(self) -> tuple[RowFormat | None, list[dict[str, Any]]]:
        """The format and the sound fragments of the unfinished part that is there, if it is the same one."""
        if not self._journal.exists():
            return None, []
        content = _load(self._journal)
        there = RowFormat.loads(content["format"])
        other = differences(
            {**there.description, "number of rows in a part": content["rows"]},
            {**self.description, "number of rows in a part": self.rows},
        )
        if other:
            raise StoreError(
                f"{self.folder} holds an unfinished {INDEX}, which was begun for {other}. Choose another folder, or "
                "delete this one."
            )
        entries: list[dict[str, Any]] = content["fragments"]
        sound = len(list(takewhile(lambda entry: _is_sound(self.folder, entry), entries)))
        for entry in entries[sound:]:
            _path_of(self.folder, entry).unlink(missing_ok=True)
        return there, entries[:sound]


def publish(folder: Path, row_format: RowFormat, fragments: Sequence[Mapping[str, Any]]) -> None:
    """Make an index of the fragments that all processes have written, in one commit.

    Args:
        folder: Where they are.
        row_format: Their format.
        fragments: :attr:`PartWriter.fragments` of every part, in any order.

    Raises:
        StoreError: There is no room, or the folder cannot be written to.
    """
    with _writing(folder):
        operation = lance().LanceOperation.Overwrite(
            row_format.schema,
            [lance().fragment.FragmentMetadata.from_json(json.dumps(fragment)) for fragment in fragments],
        )
        lance().LanceDataset.commit(str(folder), operation)
        for path in (folder / "_versions").iterdir():
            _sync(path)
        sync_folder(folder / "_versions")
        sync_folder(folder)
        shutil.rmtree(folder / _JOURNALS)


def _remove_leftovers(folder: Path, parts: int, anew: bool) -> None:
    """Delete what no build of so many parts goes on from; all that is there if the index is made anew.

    Raises:
        StoreError: Another process is writing there, or has finished the index.
    """
    if is_published(folder) and not anew:
        raise StoreError(f"Another process has just finished the {INDEX} in {folder}. Start again to use it.")
    for path in _journals(folder):
        number, count = _part_of(path)
        if anew or count != parts:
            if number > 1:
                lock_folder(folder, 0.0, _LOCK.format(number)).release()
            path.unlink()
    # The manifest first: no moment shows an index without its data.
    shutil.rmtree(folder / "_versions", ignore_errors=True)
    sync_folder(folder)
    shutil.rmtree(folder / "_transactions", ignore_errors=True)
    kept = {_path_of(folder, entry) for journal in _journals(folder) for entry in _load(journal)["fragments"]}
    for path in (folder / "data").glob("*"):
        if path not in kept:
            path.unlink()


def _journals(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / _JOURNALS).glob("*") if _JOURNAL.fullmatch(path.name))


def _part_of(journal: Path) -> tuple[int, int]:
    """Number of a journal's part, from 1, and how many there are."""
    named = _JOURNAL.fullmatch(journal.name)
    assert named is not None
    return int(named[1]), int(named[2])


def _load(journal: Path) -> dict[str, Any]:
    """What a journal holds.

    Raises:
        StoreError: It is damaged.
    """
    try:
        content = json.loads(journal.read_bytes())
        if content.pop("crc32") != _checksum(content):
            raise ValueError("its content is not what was written (checksum)")
    except OSError as error:
        raise StoreError(f"{journal} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{journal}, which says what an unfinished {INDEX} holds, is damaged ({error}). Delete the folder and "
            "build the index again."
        ) from error
    return dict(content)


def _checksum(content: Mapping[str, Any]) -> str:
    return checksum_of(json.dumps(content, sort_keys=True).encode())


def _path_of(folder: Path, entry: Mapping[str, Any]) -> Path:
    (file,) = entry["fragment"]["files"]
    return data_file(folder, file["path"])


def _is_sound(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a fragment that a journal names is as it was written."""
    path = _path_of(folder, entry)
    return path.exists() and path.stat().st_size == entry["bytes"] and checksum(path) == entry["crc32"]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(folder: Path, size: int = 0) -> Iterator[None]:
    """What Lance and the operating system say while ``size`` bytes are written is a StoreError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # Lance's errors are texts.
        full = "No space left on device" in str(error)
        if not isinstance(error, OSError) or error.errno is None:
            raise write_error(OSError(errno.ENOSPC if full else errno.EIO, str(error)), folder, size) from error
        raise write_error(error, folder, size) from error
