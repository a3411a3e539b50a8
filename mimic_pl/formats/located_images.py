"""Where the images of a file's records are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mimic_pl.formats.field_values import valid_unicode
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.renamed_files import RenamedFiles
from mimic_pl.quoting import quoted
from mimic_pl.records import ImageSource


class LocatedImages:
    """Completes relative paths of images with a folder; absolute paths, and images that are no files, are unchanged.

    Args:
        folder: The folder of relative paths.
        renamed: Accept files with the suffix ``.jpg`` instead of their own, as published mention images have.
    """

    def __init__(self, folder: Path, renamed: bool = False) -> None:
        self.folder = os.path.abspath(folder)
        self._renamed = RenamedFiles(Path(self.folder), tuple) if renamed else None

    def __call__(self, image: Any, key: str) -> ImageSource | None:
        """The image; ``None`` for a URL, which is not fetched."""
        if isinstance(image, bytes) or hasattr(image, "__array_interface__"):  # content, a PIL image, pixels
            return image
        if not isinstance(image, str) or "\0" in image:
            raise FieldError(f"the image {quoted(image)} is not a file name.", "image name")
        if "://" in valid_unicode(image, "image"):
            return None
        file = None if self._renamed is None or os.path.isabs(image) else self._renamed.find(image)[0]
        return os.path.join(self.folder, image) if file is None else str(file)


def folder_of_images(path: Path, names: tuple[str, ...]) -> Path:
    """Folder that relative paths of images begin in: one of these beside the file, or the file's own.

    Args:
        path: The file; for a pipe, paths begin in the working directory.
        names: Names of folders, the first that exists is taken.
    """
    parent = path.parent if path.is_file() else Path()
    return next((parent / name for name in names if (parent / name).is_dir()), parent)
