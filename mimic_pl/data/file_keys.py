"""Hashes that identify files: by content, or by path and metadata without reading them."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mimic_pl.processor.images import MAX_BYTES

KEY_BYTES = 16

_PART = 1 << 20
"""Bytes read at once."""

_SETTLED = 100_000_000
"""Nanoseconds. A file changed more recently may change again within the resolution of its timestamps."""


def digest(path: Path) -> bytes | None:
    """Hash of a file's content; ``None`` if it cannot be read, is not a regular file, or is too large for an image."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        hashed = hashlib.blake2b(digest_size=KEY_BYTES)
        with open(path, "rb") as file:
            while part := file.read(_PART):
                hashed.update(part)
        return hashed.digest()
    except (OSError, ValueError):  # an invalid file name is a ValueError
        return None


def digests(paths: Sequence[Path]) -> list[bytes | None]:
    """Hash of each file's content, computed in threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(digest, paths))


def signature(path: Path, max_pixels: int) -> bytes | None:
    """Hash of a file's path, size, modification time and inode change time, to detect that it has changed.

    The inode change time detects changes even if a tool restores the modification time, as copying tools do.

    Args:
        path: The file.
        max_pixels: Part of the hash, since it decides whether an image is oversized.

    Returns:
        ``None`` if there is no such file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    key = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {max_pixels} "
    return hashlib.blake2b(key.encode() + os.fsencode(os.path.abspath(path)), digest_size=KEY_BYTES).digest()


def is_settled(path: Path) -> bool:
    """Whether a file's last change is old enough that another change would alter its timestamps."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED
