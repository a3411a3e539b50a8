"""A store opened for reading: nothing is loaded, any rows can be had."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.files import checksum
from mimic_pl.store.layout import offsets_in
from mimic_pl.store.manifest import MANIFEST, UNFINISHED, Column, Manifest, Shard, unmet


class Store:
    """Rows of named arrays on disk.

    Opening reads the manifest and looks at the sizes of the files, whatever they hold. :meth:`slice` is for going
    through the rows in order, :meth:`select` for rows here and there; both read what is asked for and nothing else.

    Files are read and never mapped. The pages of a mapped file count as a process's memory; a file that is cut off
    under a map kills the process without a word; and reading took two thirds of the time (712 MB in order, warm).

    A file's checksum is compared when it is first used, which costs one reading of it (a quarter of a second per GB
    that is in the page cache); where rows are few and any damage to them is harmless, do without (``check=False``).

    It can be pickled, and used after a fork.

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

    @staticmethod
    def exists(folder: Path | str) -> bool:
        """Whether there is a finished store."""
        # os.path.exists: unlike Path.exists it takes a folder that may not be looked into for one without a store.
        return os.path.exists(Path(folder).expanduser() / MANIFEST)

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
            Copies ``[stop - start, *shape]`` by column.

        Raises:
            IndexError: They are not all in the store.
            StoreError: A shard is damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of a store with {len(self)} rows")
        return self.select(torch.arange(start, stop))

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
        path = self.folder / self.manifest.shards[number].file
        try:
            with open(path, "rb", buffering=0) as file:
                for name, target in targets.items():
                    size = self.columns[name].bytes_per_row
                    for local, row, count in runs:
                        file.seek(offsets[name] + local * size)
                        part = target[row * size : (row + count) * size]
                        while part:
                            got = file.readinto(part)
                            if not got:
                                require_size(self.folder, self.manifest, self.manifest.shards[number])
                                raise StoreError(f"{path} was cut off while it was read. Build it again.")
                            part = part[got:]
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}. Is it being replaced?") from error

    def _layout(self, number: int) -> dict[str, int]:
        """Where in a shard's file the columns begin; the first time the file is checked."""
        shard = self.manifest.shards[number]
        if number not in self._offsets:
            require_size(self.folder, self.manifest, shard)
            if self.check and number not in self._checked:
                self._compare(shard)
                self._checked.add(number)
            path = self.folder / shard.file
            try:
                self._offsets[number] = offsets_in(path, self.columns, shard.rows, shard.bytes)
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"{path} is damaged ({error}). Delete the folder and build the {self.manifest.kind} again."
                ) from error
        return self._offsets[number]

    def _compare(self, shard: Shard) -> None:
        try:
            content = checksum(self.folder / shard.file)
        except OSError as error:
            raise StoreError(f"{self.folder / shard.file} cannot be read: {error.strerror or error}.") from error
        if content != shard.crc32:
            raise StoreError(
                f"{self.folder / shard.file} is damaged: its content is not what was written (checksum). Delete the "
                f"folder and build the {self.manifest.kind} again."
            )

    def _empty(self, rows: int, names: Iterable[str]) -> dict[str, Tensor]:
        columns = {name: self.columns[name] for name in names}
        return {name: torch.empty((rows, *column.shape), dtype=column.dtype) for name, column in columns.items()}


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
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        raise StoreError(f"{path} cannot be read: {error}.") from error
    if size != shard.bytes:
        raise StoreError(
            f"{path} has {size} bytes where the {manifest.kind} needs {shard.bytes}: it was cut off or replaced. "
            "Delete the folder and build it again."
        )
