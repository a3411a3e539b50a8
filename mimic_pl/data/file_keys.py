"""What tells files apart: by content, and without reading them; and a table of many such keys."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16

_SETTLED = 100_000_000
"""Nanoseconds. A file that changed less long ago may change again without its times showing it."""


def digest(path: Path) -> bytes | None:
    """Hash of a file's content; ``None`` if it cannot be read, or is no file that ends, such as a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        return hashlib.blake2b(path.read_bytes(), digest_size=KEY_BYTES).digest()
    except (OSError, ValueError):  # a name that no file can have is a ValueError
        return None


def signature(path: Path, max_pixels: int) -> bytes | None:
    """Hash of what shows that a file has changed: its path, its size, when its content and when its inode changed.

    The inode's time also shows a change whose author set the content's time back, as copying tools do.

    Args:
        path: The file.
        max_pixels: Enters the hash: whether an image is too large depends on it.

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
    """Whether a file last changed so long ago that another change would show in its times."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED


class KeyTable:
    """Numbers by key, in arrays: a million of them take 24 MB.

    Args:
        keys: uint8 ``[n, 16]``, all different.
        values: int64 ``[n]``.
    """

    def __init__(self, keys: NDArray[np.uint8], values: NDArray[np.int64]) -> None:
        words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
        order = np.argsort(words[:, 0])
        self._first, self._second = words[order, 0], words[order, 1]
        self._values = values[order]

    def get(self, key: bytes) -> int | None:
        """The number of a key."""
        first, second = struct.unpack("=QQ", key)
        place = int(self._first.searchsorted(np.uint64(first)))
        while place < len(self._first) and self._first.item(place) == first:
            if self._second.item(place) == second:
                return self._values.item(place)
            place += 1
        return None
