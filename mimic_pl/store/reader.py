"""A store opened for reading: nothing is loaded, any rows can be had."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.store.files import checksum
from mimic_pl.store.manifest import MANIFEST, UNFINISHED, Column, Manifest, Shard, unmet

MAPPED_SHARDS = 2
"""Shards that stay mapped: the pages that a process has read of a mapped file count as its memory."""


class Store:
    """Rows of named arrays on disk.

    Opening reads the manifest and looks at the sizes of the files, whatever they hold. :meth:`slice` is for going
    through the rows in order: it maps shards, a few at a time, so that memory stays flat however large the store is.
    :meth:`select` is for rows here and there: it reads them and nothing else, without mapping anything.

    A file's size is checked before it is mapped, since reading past its end would kill the process. Its checksum is
    compared when it is first used, which costs one reading of it (a quarter of a second per GB that is in the page
    cache); where rows are few and any damage to them is harmless, do without (``check=False``).

    It can be pickled, and used after a fork: each process maps for itself. Tensors must not be written to.

    Example::

        store = Store.open(folder, "entity index", expects={"model": fingerprint})
        first = store.slice(0, 128)["key"]  # [128, 96]

    Args:
        folder: Where it lies.
        manifest: What it holds.
        check: Compare a shard's checksum when it is first used.
    """

    def __init__(self, folder: Path, manifest: Manifest, check: bool = True) -> None:
        self.folder = folder
        self.manifest = manifest
        self.check = check
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
        self._checked: set[int] = set()
        self._offsets: dict[int, dict[str, int]] = {}
        self._mapped: dict[int, dict[str, Tensor]] = {}

    @staticmethod
    def exists(folder: Path | str) -> bool:
        """Whether there is a finished store."""
        return (Path(folder).expanduser() / MANIFEST).exists()

    @classmethod
    def open(cls, folder: Path | str, kind: str, expects: Mapping[str, Any] | None = None, check: bool = True) -> Store:
        """Open a store.

        Args:
            folder: Where it lies.
            kind: What it must be.
            expects: Values that its description must have, by name.
            check: Compare a shard's checksum when it is first used.

        Raises:
            StoreError: There is none, it is unfinished, of another kind or made from something else, or a shard is
                missing or cut off.
        """
        folder = Path(folder).expanduser()
        if not cls.exists(folder):
            if (folder / UNFINISHED).exists():
                unfinished = Manifest.load(folder / UNFINISHED)
                raise StoreError(
                    f"The {kind} in {folder} is unfinished: {unfinished.rows_written} of {unfinished.rows} rows. Run "
                    "what built it again, and it goes on from there."
                )
            raise StoreError(f"There is no {kind} in {folder} (no file {MANIFEST}). Build it there, or check the path.")
        manifest = Manifest.load(folder / MANIFEST)
        if manifest.kind != kind:
            raise StoreError(f"{folder} holds the {manifest.kind}, not the {kind}. Choose another folder.")
        for key, value in (expects or {}).items():
            if unmet(manifest.description, {key: value}):
                raise StoreError(
                    f"The {kind} in {folder} was built for another {key}: {manifest.description.get(key)!r}, and now "
                    f"it is {value!r}. Build it again, in another folder or with this one deleted."
                )
        require_sizes(folder, manifest)
        return cls(folder, manifest, check)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    @property
    def columns(self) -> dict[str, Column]:
        """Its arrays by name."""
        return self.manifest.columns

    @property
    def description(self) -> dict[str, Any]:
        """What it was made from."""
        return self.manifest.description

    @property
    def bytes_per_row(self) -> int:
        """Bytes that one row takes."""
        return self.manifest.bytes_per_row

    def slice(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows from ``start`` to before ``stop``.

        Returns:
            Tensors ``[stop - start, *shape]`` by column: views of a mapped file where one shard holds all of the rows,
            else copies.

        Raises:
            IndexError: They are not all in the store.
            StoreError: A shard is damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of a store with {len(self)} rows")
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left")) - 1
        pieces = []
        for number in range(first, last + 1):
            begin = int(self._starts[number])
            tensors = self._map(number)
            pieces.append({name: tensors[name][max(0, start - begin) : stop - begin] for name in self.columns})
        if not pieces:
            return self._empty(0, self.columns)
        if len(pieces) == 1:
            return pieces[0]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in self.columns}

    def select(self, positions: Tensor, columns: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Rows at these positions, in their order.

        Args:
            positions: int64 ``[n]``; any order, repetitions allowed.
            columns: Which columns; all by default.

        Returns:
            Copies ``[n, *shape]`` by column.

        Raises:
            IndexError: They are not all in the store.
            StoreError: A shard is damaged.
        """
        names = list(self.columns) if columns is None else list(columns)
        rows = positions.cpu().numpy()
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store with {len(self)} rows")
        selected = self._empty(len(rows), names)
        targets = {
            name: memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            for name, tensor in selected.items()
            if tensor.numel()
        }
        for number, runs in self._runs(rows).items():
            self._read(number, runs, targets)
        return selected

    def verify(self) -> None:
        """Read everything and compare checksums.

        Raises:
            StoreError: A shard is missing, cut off or damaged; it is named.
        """
        require_sizes(self.folder, self.manifest)
        for shard in self.manifest.shards:
            self._compare(shard)

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this process."""
        return {**self.__dict__, "_mapped": {}}

    def _runs(self, rows: NDArray[np.int64]) -> dict[int, list[tuple[int, int, int]]]:
        """Cut wanted rows into runs that lie behind each other, on disk and in the result, to be read at once.

        Returns:
            By shard: first row in the shard, first row in the result, number of rows.
        """
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        shards = np.searchsorted(self._starts, ordered, side="right") - 1
        apart = (np.diff(ordered) != 1) | (np.diff(order) != 1) | (np.diff(shards) != 0)
        runs: dict[int, list[tuple[int, int, int]]] = {}
        for run in np.split(np.arange(len(rows)), np.flatnonzero(apart) + 1) if len(rows) else ():
            number = int(shards[run[0]])
            local = int(ordered[run[0]] - self._starts[number])
            runs.setdefault(number, []).append((local, int(order[run[0]]), len(run)))
        return runs

    def _read(self, number: int, runs: list[tuple[int, int, int]], targets: dict[str, memoryview]) -> None:
        """Read runs of a shard (row in the shard, row in the result, rows) into the memory of the result."""
        offsets = self._layout(number)
        # Opened for this once: an open file's position would be shared with processes that are forked from this one.
        with open(self.folder / self.manifest.shards[number].file, "rb", buffering=0) as file:
            for name, target in targets.items():
                size = self.columns[name].bytes_per_row
                for local, row, count in runs:
                    file.seek(offsets[name] + local * size)
                    part = target[row * size : (row + count) * size]
                    while part:
                        got = file.readinto(part)
                        if not got:
                            raise self._cut_off(number)
                        part = part[got:]

    def _map(self, number: int) -> dict[str, Tensor]:
        """All rows of a shard, as views of the mapped file."""
        # Each step is one operation of the interpreter: threads may map a shard twice, and nothing worse.
        tensors = self._mapped.pop(number, None)
        if tensors is None:
            self._layout(number)
            tensors = self._open(number)
        self._mapped[number] = tensors
        while len(self._mapped) > MAPPED_SHARDS:
            self._mapped.pop(next(iter(self._mapped)), None)
        return tensors

    def _layout(self, number: int) -> dict[str, int]:
        """Where in a shard's file the columns begin; the first time the file is checked."""
        if number not in self._offsets:
            shard = self.manifest.shards[number]
            require_size(self.folder, self.manifest, shard)
            if self.check and number not in self._checked:
                self._compare(shard)
                self._checked.add(number)
            tensors = self._open(number)
            have = {
                name: (Column(tensor.dtype, tuple(tensor.shape[1:])), len(tensor)) for name, tensor in tensors.items()
            }
            if have != {name: (column, shard.rows) for name, column in self.columns.items()}:
                raise StoreError(
                    f"{self.folder / shard.file} holds other arrays than the manifest of the {self.manifest.kind} "
                    "says. Delete the folder and build it again."
                )
            with open(self.folder / shard.file, "rb") as file:
                # The format: eight bytes with the length of the header, the header as JSON, the data.
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            self._offsets[number] = {name: 8 + length + header[name]["data_offsets"][0] for name in self.columns}
        return self._offsets[number]

    def _open(self, number: int) -> dict[str, Tensor]:
        path = self.folder / self.manifest.shards[number].file
        require_size(self.folder, self.manifest, self.manifest.shards[number])
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in self.columns}
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{path} is damaged ({error}). Delete the folder and build it again.") from error

    def _compare(self, shard: Shard) -> None:
        if checksum(self.folder / shard.file) != shard.crc32:
            raise StoreError(
                f"{self.folder / shard.file} is damaged: its content is not what was written (checksum). Delete the "
                f"folder and build the {self.manifest.kind} again."
            )

    def _empty(self, rows: int, names: Iterable[str]) -> dict[str, Tensor]:
        columns = {name: self.columns[name] for name in names}
        return {name: torch.empty((rows, *column.shape), dtype=column.dtype) for name, column in columns.items()}

    def _cut_off(self, number: int) -> StoreError:
        shard = self.manifest.shards[number]
        return StoreError(f"{self.folder / shard.file} was cut off while it was read. Build it again.")


def require_sizes(folder: Path, manifest: Manifest) -> None:
    """Look whether every shard is there and as long as it should be.

    Raises:
        StoreError: One is not.
    """
    for shard in manifest.shards:
        require_size(folder, manifest, shard)


def require_size(folder: Path, manifest: Manifest, shard: Shard) -> None:
    """Look whether a shard is there and as long as it should be.

    Raises:
        StoreError: It is not.
    """
    path = folder / shard.file
    try:
        size = os.stat(path).st_size
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is missing, a part of the {manifest.kind}. Delete the folder and build it again."
        ) from error
    if size != shard.bytes:
        raise StoreError(
            f"{path} has {size} bytes where the {manifest.kind} needs {shard.bytes}: it was cut off or replaced. "
            "Delete the folder and build it again."
        )
