"""Files that are either whole or not there: space set aside, written, synced, renamed into place."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

from mimic_pl.errors import StoreError

LOCK = ".lock"
"""Name of the file that a writer locks. The operating system frees the lock of a writer that is killed."""

UNFINISHED_SUFFIX = ".tmp"
"""What a file is called while it is being written."""

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# File systems that cannot set space aside say so with one of these; writing then finds out by itself.
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old one, or none, but never a part.

    The space is set aside before the first byte is written: on a full disk a clean error comes at once.

    Raises:
        StoreError: There is no room, or the folder cannot be written to.
    """
    temporary = path.with_name(path.name + UNFINISHED_SUFFIX)
    try:
        try:
            with open(temporary, "wb") as file:
                _allocate(file.fileno(), len(content))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path, len(content)) from error


def rename(old: Path, new: Path) -> None:
    """Give a file its final name, durably.

    Raises:
        StoreError: The folder cannot be written to.
    """
    try:
        os.replace(old, new)
        sync_folder(new.parent)
    except OSError as error:
        raise write_error(error, new, 0) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the operating system has a way to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Look whether there is room before anything is written.

    Args:
        folder: Where it is to be written; it exists.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        StoreError: There is not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{what} needs {readable_bytes(needed)} in {folder}, and {readable_bytes(free)} are free. Make room, or "
            "choose a folder on another disk."
        )


def checksum(path: Path) -> str:
    """CRC-32 of a file's content, read in pieces."""
    crc = 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return _hexadecimal(crc)


def checksum_of(content: bytes) -> str:
    """CRC-32 of bytes."""
    return _hexadecimal(zlib.crc32(content))


def lock(folder: Path, wait: float, name: str = LOCK) -> FileLock:
    """Become the one writer of a folder, which is made if it is not there.

    Args:
        folder: The folder.
        wait: Seconds to wait for another writer; below zero for as long as it takes.
        name: Name of the file that is locked.

    Raises:
        StoreError: Another process is writing there, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return only_writer(folder, name, wait)
    except OSError as error:
        raise write_error(error, folder, 0) from error


def only_writer(folder: Path, name: str, wait: float = 0) -> FileLock:
    """Become the one who holds a lock in a folder.

    Args:
        folder: The folder; it exists.
        name: Name of the file that is locked.
        wait: Seconds to wait for another holder; below zero for as long as it takes.

    Raises:
        StoreError: Another process holds it.
        OSError: The folder cannot be written to.
    """
    held = FileLock(folder / name, thread_local=False)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            if wait:
                _log.warning(f"Waiting for another process that writes to {folder}.")
            held.acquire(timeout=wait)
    except Timeout as error:
        raise StoreError(
            f"Another process is writing to {folder}. Wait for it to end (a writer that was killed holds no lock), or "
            "choose another folder."
        ) from error
    return held


def readable_bytes(count: int) -> str:
    """A number of bytes as a person reads it: ``"16.6 GB"``."""
    if count < 1000:
        return f"{count} bytes"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _hexadecimal(crc: int) -> str:
    return f"{crc:08x}"


def _allocate(descriptor: int, size: int) -> None:
    # Not on macOS and Windows. An empty file needs nothing, and to allocate nothing is an error.
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise


def write_error(error: OSError, path: Path, size: int) -> StoreError:
    """What to tell a user about a file that cannot be written.

    Args:
        error: What the operating system says.
        path: The file.
        size: Bytes that were to be written.
    """
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        return StoreError(
            f"The disk is full: {path} needs {readable_bytes(size)}, and {readable_bytes(free)} are free. What was "
            "written before is whole: make room and start again, and the work goes on from there."
        )
    return StoreError(f"{path} cannot be written: {error.strerror or error}. Check the folder, or choose another one.")
