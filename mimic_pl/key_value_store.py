"""Bytes by key in a folder, for caches: an LMDB environment whose values are checked where they are read."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from mimic_pl.errors import StoreError

_ADDRESS_SPACE = 1 << 40
"""Bytes that a store can grow to. LMDB reserves addresses, not memory or disk."""

_CRC_BYTES = 4
_DATA = "data.mdb"


class _Opened(NamedTuple):
    """An environment and its tables."""

    environment: Any
    tables: dict[str, Any]
    inode: int


# LMDB opens a folder once in a process, and an environment must not be carried through a fork: all are closed before
# one, and opened again where they are needed.
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

    Any number of processes read and write; what :meth:`put` has written survives a kill. Every value carries a CRC-32:
    a damaged one counts as missing.

    Args:
        folder: Where it is; made with the first :meth:`put`.
        tables: Names of its tables.
    """

    def __init__(self, folder: Path, tables: Sequence[str]) -> None:
        self.folder = folder
        self.tables = tuple(tables)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of a key; ``None`` where there is none, or a damaged one.

        Raises:
            StoreError: The store is damaged as a whole, or cannot be read.
        """
        with self._reading(table) as transaction:
            stored = None if transaction is None else transaction.get(key)
            if stored is None or len(stored) < _CRC_BYTES:
                return None
            value = stored[_CRC_BYTES:]
            return bytes(value) if zlib.crc32(value) == int.from_bytes(stored[:_CRC_BYTES], "little") else None

    def count(self, table: str) -> int:
        """How many keys a table has.

        Raises:
            StoreError: The store is damaged as a whole, or cannot be read.
        """
        with self._reading(table) as transaction:
            return 0 if transaction is None else int(transaction.stat()["entries"])

    def put(self, items: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Write values, all of them or none.

        Args:
            items: Table, key and value of each.

        Raises:
            StoreError: There is no room, or the folder cannot be written to.
        """
        with self._explained(), _lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            environment, tables, _ = self._open()
            with environment.begin(write=True) as transaction:
                for table, key, value in items:
                    crc = zlib.crc32(value).to_bytes(_CRC_BYTES, "little")
                    transaction.put(key, crc + value, db=tables[table])

    @contextmanager
    def _reading(self, table: str) -> Iterator[Any]:
        """A transaction that reads a table; ``None`` if nothing was written yet."""
        if not (self.folder / _DATA).is_file():
            yield None
            return
        with self._explained(), _lock:
            environment, tables, _ = self._open()
            if tables[table] is None:
                yield None
                return
            with environment.begin(db=tables[table], buffers=True) as transaction:
                yield transaction

    def _open(self) -> _Opened:
        name = str(self.folder.resolve())
        data = self.folder / _DATA
        if name in _opened and not (data.is_file() and data.stat().st_ino == _opened[name].inode):
            _opened.pop(name).environment.close()  # the folder was deleted, or another one put in its place
        if name not in _opened:
            # Who may not write in the folder cannot take part in the locking either.
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
            _opened[name] = _Opened(environment, tables, data.stat().st_ino)
        return _opened[name]

    def _require_complete(self, environment: Any) -> None:
        """A file that was cut off is found now: reading beyond its end would end the process."""
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        size = (self.folder / _DATA).stat().st_size
        if size < needed:
            raise StoreError(
                f"{self.folder / _DATA} is cut off: it has {size} of {needed} bytes. Delete the folder {self.folder}; "
                "it is filled again."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
            raise StoreError(f"{self.folder} is damaged ({error}). Delete the folder; it is filled again.") from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.folder} cannot be written to, or read: {error}. Make room, or choose another folder."
            ) from error


def _table(environment: Any, name: str, writable: bool) -> Any:
    try:
        return environment.open_db(name.encode(), create=writable)
    except (lmdb.NotFoundError, lmdb.ReadonlyError):
        return None  # nothing was written yet, and this process cannot
