"""What tells files apart: by content, and without reading them."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path

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
