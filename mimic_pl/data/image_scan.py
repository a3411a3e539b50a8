"""Opens many images once, to know beforehand which of them fail."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from mimic_pl.batch import ImageFailure
from mimic_pl.data.file_keys import digest
from mimic_pl.processor.images import ImageError, ImageFolder, open_image


class ScannedImage(NamedTuple):
    """What is known of an image that a record names.

    Attributes:
        path: Where it lies, or would lie.
        failure: ``missing``, ``unreadable`` or ``oversized``; ``None`` if it opens.
        digest: Hash of the file's content; empty if there is no file.
    """

    path: Path
    failure: str | None
    digest: str


def scan(folder: ImageFolder, names: Iterable[str], title: str) -> dict[str, ScannedImage]:
    """Open every one of these images, whatever the folder's policy.

    Args:
        folder: Where they lie.
        names: Their names; one that comes twice is opened once.
        title: What the progress bar says.

    Returns:
        What was found, by name.
    """
    distinct = list(dict.fromkeys(names))

    def look(name: str) -> ScannedImage:
        path = folder.path(name)
        try:
            open_image(path, folder.max_pixels)
        except ImageError as error:
            return ScannedImage(path, error.kind, _digest(path))
        return ScannedImage(path, None, _digest(path))

    # Pillow decodes outside of the interpreter's lock, so threads share the work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = tqdm(pool.map(look, distinct), desc=title, total=len(distinct), unit="image", leave=False, delay=1)
        return dict(zip(distinct, found, strict=True))


def failures(scanned: dict[str, ScannedImage]) -> list[ImageFailure]:
    """Path and kind of those that failed."""
    return [(str(image.path), image.failure) for image in scanned.values() if image.failure]


def _digest(path: Path) -> str:
    return (digest(path) or b"").hex()
