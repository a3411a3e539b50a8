"""Opens many pictures once, to know beforehand which of them fail."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from mimic_pl.data.file_keys import digest
from mimic_pl.data.pictures import Failure, PictureError, PictureFolder, open_picture


class ScannedPicture(NamedTuple):
    """What is known of a picture that a record names.

    Attributes:
        path: Where it lies, or would lie.
        failure: ``missing``, ``unreadable`` or ``oversized``; ``None`` if it opens.
        digest: Hash of the file's content; empty if there is no file.
    """

    path: Path
    failure: str | None
    digest: str


def scan(folder: PictureFolder, names: Iterable[str], title: str) -> dict[str, ScannedPicture]:
    """Open every one of these pictures, whatever the folder's policy.

    Args:
        folder: Where they lie.
        names: Their names; one that comes twice is opened once.
        title: What the progress bar says.

    Returns:
        What was found, by name.
    """
    distinct = list(dict.fromkeys(names))

    def look(name: str) -> ScannedPicture:
        path = folder.path(name)
        try:
            open_picture(path, folder.max_pixels)
        except PictureError as error:
            return ScannedPicture(path, error.kind, _digest(path))
        return ScannedPicture(path, None, _digest(path))

    # Pillow decodes outside of the interpreter's lock, so threads share the work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = tqdm(pool.map(look, distinct), desc=title, total=len(distinct), unit="picture", leave=False, delay=1)
        return dict(zip(distinct, found, strict=True))


def failures(scanned: dict[str, ScannedPicture]) -> list[Failure]:
    """Path and kind of those that failed."""
    return [(str(picture.path), picture.failure) for picture in scanned.values() if picture.failure]


def _digest(path: Path) -> str:
    return (digest(path) or b"").hex()
