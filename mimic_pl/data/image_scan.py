"""Opens many images once, to find those that fail."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from mimic_pl.batch import ImageFailure
from mimic_pl.data.file_keys import digest
from mimic_pl.processor.images import ImageError, ImageFolder, opened_image


class ScannedImage(NamedTuple):
    """Result of scanning an image.

    Attributes:
        path: Its path, even if the file is missing.
        failure: One of :data:`~mimic_pl.processor.images.FAILURES`; ``None`` if it opens.
        digest: Hash of the file's content; ``None`` if there is no file.
    """

    path: Path
    failure: str | None
    digest: bytes | None


def scan(folder: ImageFolder, names: Iterable[str], title: str) -> dict[str, ScannedImage]:
    """Open all of these images, regardless of the folder's policy.

    Args:
        folder: Their folder.
        names: Their names; duplicates are opened once.
        title: Title of the progress bar.

    Returns:
        Results by name.
    """
    distinct = list(dict.fromkeys(names))

    def opens(path: Path) -> None:
        with opened_image(path, folder.max_pixels):
            pass

    def scan_one(name: str) -> ScannedImage:
        path, failure = folder.path(name), None
        try:
            folder.load(name, opens)
        except ImageError as error:
            failure = error.kind
        return ScannedImage(path, failure, digest(path))

    # Pillow releases the GIL while decoding, so threads run in parallel.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scanned = pool.map(scan_one, distinct)
        bar = tqdm(scanned, desc=title, total=len(distinct), unit="image", leave=False, delay=1)
        return dict(zip(distinct, bar, strict=True))


def failures(scanned: dict[str, ScannedImage]) -> list[ImageFailure]:
    """Path and failure of the images that failed."""
    return [(str(image.path), image.failure) for image in scanned.values() if image.failure]
