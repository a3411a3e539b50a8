"""Atomic file writes (space allocated, written, synced, renamed into place), and locks on folders."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

from mimic_pl.errors import StoreError

LOCK = ".lock"
"""Name of the file that a writer locks. The operating system releases the lock of a killed writer."""

UNFINISHED_SUFFIX = ".tmp"
"""Suffix of a file's name while it is being written."""

_log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""``errno`` values that mean that there is no space left."""

# Raised by file systems that cannot allocate space in advance; a full disk then shows while writing.
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


def cache_folder(name: str) -> Path | None:
    """``mimic_pl/NAME`` in the user's cache folder: ``XDG_CACHE_HOME``, or ``~/.cache``.

    Returns:
        ``None``, with a warning, if the user has no home directory, as in some containers.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(root or Path.home() / ".cache") / "mimic_pl" / name
    except RuntimeError:
        _log.warning(
            f"The user has no home directory, so {name} are not cached, but computed in every epoch. Name a folder for "
            "caches: XDG_CACHE_HOME=FOLDER in the environment."
        )
        return None


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: if the process is killed or the disk is full, the old file, or none, is left.

    The space is allocated before the first byte is written, so a full disk is reported at once.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
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


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the operating system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that there is enough space before anything is written.

    Args:
        folder: An existing folder to write to.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        StoreError: There is not enough space.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{what} needs {readable_bytes(needed)} in {folder}, but only {readable_bytes(free)} are free. Free some "
            "space, or choose a folder on another disk."
        )


def checksum_of(content: bytes) -> str:
    """CRC-32 of bytes."""
    return f"{zlib.crc32(content):08x}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def lock_folder(folder: Path, wait: float, name: str = LOCK) -> FileLock:
    """Lock a folder for writing, like :func:`acquire_lock`, but without OSErrors.

    Args:
        folder: The folder.
        wait: Seconds to wait for another writer; negative to wait indefinitely.
        name: Name of the lock file.

    Raises:
        StoreError: Another process holds the lock, or the folder is not writable.
    """
    try:
        return acquire_lock(folder, name, wait)
    except OSError as error:
        raise write_error(error, folder, 0) from error


def acquire_lock(folder: Path, name: str, wait: float = 0) -> FileLock:
    """Acquire a lock in a folder, which is created if it does not exist.

    Args:
        folder: The folder.
        name: Name of the lock file.
        wait: Seconds to wait for another holder; negative to wait indefinitely.

    Raises:
        StoreError: Another process holds the lock.
        OSError: The folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, thread_local=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if wait:
                _log.warning(f"Waiting for another process that writes to {folder}.")
            lock.acquire(timeout=wait)
    except Timeout as error:
        raise StoreError(
            f"Another process is writing to {folder}. Wait for it to finish (a killed writer holds no lock), or choose "
            "another folder."
        ) from error
    return lock


def readable_bytes(count: int) -> str:
    """A human-readable number of bytes: ``"16.6 GB"``."""
    if count < 1000:
        return f"{count} bytes"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _allocate(descriptor: int, size: int) -> None:
    # Not available on macOS and Windows. Allocating zero bytes is an error.
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise


def write_error(error: OSError, path: Path, size: int) -> StoreError:
    """The error for a file that cannot be written.

    Args:
        error: The error of the operating system.
        path: The file.
        size: Bytes to be written.
    """
    if error.errno in DISK_FULL:
        free = shutil.disk_usage(path.parent).free
        return StoreError(
            f"The disk is full: {path} needs {readable_bytes(size)}, but only {readable_bytes(free)} are free. "
            "Everything written so far is intact: free some space and start again to resume from there."
        )
    return StoreError(f"{path} cannot be written: {error.strerror or error}. Check the folder, or choose another one.")
