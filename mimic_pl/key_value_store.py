"""A key-value store on disk, for caches: an LMDB environment whose values are verified on reading."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from mimic_pl.errors import StoreError

_ADDRESS_SPACE = 1 << 40
"""Maximum size of a store in bytes. LMDB reserves address space, not memory or disk."""

_HEADER = struct.Struct("<II")
"""Before each value: CRC-32 of table, key and value, and the length of the value in bytes."""

_DATA = "data.mdb"


class _Opened(NamedTuple):
    """An environment and its tables."""

    environment: Any
    tables: dict[str, Any]
    inode: int


# LMDB opens a folder once per process, and an environment must not be used across a fork: all are closed before a fork
# and reopened on demand.
_opened: dict[str, _Opened] = {}
_lock = threading.RLock()


def _before_fork() -> None:
    _lock.acquire()
    for opened in _opened.values():
        opened.environment.close()
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)


class KeyValueStore:
    """Tables of bytes by key.

    Any number of processes may read and write; values written by :meth:`put` survive a kill. Every value has a CRC-32,
    which also covers its table and key: a corrupted value counts as missing, and so does that of another key to which a
    corrupted page leads.

    Args:
        folder: Its folder, created by the first :meth:`put`.
        tables: Names of its tables.
    """

    def __init__(self, folder: Path, tables: Sequence[str]) -> None:
        self.folder = folder.resolve()
        self.tables = tuple(tables)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of a key; ``None`` if it is missing or corrupted.

        Raises:
            StoreError: The whole store is corrupted, or cannot be read.
        """
        with self._reading(table) as transaction:
            stored = None if transaction is None else transaction.get(key)
            if stored is None or len(stored) < _HEADER.size:
                return None
            crc, length = _HEADER.unpack_from(stored)
            # Compared before the value is read: beyond the end of the file, it would crash the process.
            if length != len(stored) - _HEADER.size:
                return None
            value = bytes(stored[_HEADER.size :])
            return value if crc == _checksum(table, key, value) else None

    def count(self, table: str) -> int:
        """Number of keys of a table.

        Raises:
            StoreError: The whole store is corrupted, or cannot be read.
        """
        with self._reading(table) as transaction:
            return 0 if transaction is None else int(transaction.stat()["entries"])

    def put(self, items: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Write values in one transaction.

        Args:
            items: Table, key and value of each.

        Raises:
            StoreError: The disk is full, or the folder is not writable.
        """
        with self._as_store_errors(), _lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            environment, tables, _ = self._open(self._inode())
            with environment.begin(write=True) as transaction:
                for table, key, value in items:
                    header = _HEADER.pack(_checksum(table, key, value), len(value))
                    transaction.put(key, header + value, db=tables[table])

    @contextmanager
    def _reading(self, table: str) -> Iterator[Any]:
        """A read transaction on a table; ``None`` if nothing was written yet."""
        inode = self._inode()
        if inode is None:
            yield None
            return
        with self._as_store_errors(), _lock:
            environment, tables, _ = self._open(inode)
            if tables[table] is None:
                yield None
                return
            with environment.begin(db=tables[table], buffers=True) as transaction:
                yield transaction

    def _inode(self) -> int | None:
        try:
            return os.stat(f"{self.folder}/{_DATA}").st_ino
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _open(self, inode: int | None) -> _Opened:
        name = str(self.folder)
        if name in _opened and inode != _opened[name].inode:
            _opened.pop(name).environment.close()  # the folder was deleted or replaced
        if name not in _opened:
            # LMDB's lock needs a writable folder.
            writable = os.access(self.folder, os.W_OK)
            environment = lmdb.open(
                name,
                map_size=_ADDRESS_SPACE,
                max_dbs=len(self.tables),
                readonly=not writable,
                lock=writable,
                readahead=False,
                meminit=False,
                max_readers=1024,
            )
            try:
                self._require_complete(environment)
                tables = {table: _table(environment, table, writable) for table in self.tables}
            except BaseException:
                environment.close()
                raise
            _opened[name] = _Opened(environment, tables, os.stat(f"{name}/{_DATA}").st_ino)
        return _opened[name]

    def _require_complete(self, environment: Any) -> None:
        """Detect a truncated file: reading past its end would crash the process."""
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        size = (self.folder / _DATA).stat().st_size
        if size < needed:
            raise StoreError(
                f"{self.folder / _DATA} is truncated: it has {size} of {needed} bytes. Delete the folder "
                f"{self.folder}; it is rebuilt automatically."
            )

    @contextmanager
    def _as_store_errors(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
            raise StoreError(
                f"{self.folder} is corrupted ({error}). Delete the folder; it is rebuilt automatically."
            ) from error
        except lmdb.MemoryError as error:
            raise StoreError(
                f"{self.folder} cannot be mapped into memory. It needs address space, not memory: remove the "
                "limit (ulimit -v unlimited), or disable the cache (--data.image_cache null, "
                "--model.encoder.frozen_features null)."
            ) from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.folder} cannot be read or written: {error}. Free some space, or choose another folder."
            ) from error


def _checksum(table: str, key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(table.encode() + key))


def _table(environment: Any, name: str, writable: bool) -> Any:
    try:
        return environment.open_db(name.encode(), create=writable)
    except (lmdb.NotFoundError, lmdb.ReadonlyError):
        return None  # nothing was written yet, and this process cannot write
