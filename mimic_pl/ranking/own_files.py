"""Images in the folder of a knowledge base itself, which stay its images when the folder is moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mimic_pl.records import Entity, ImageSource
from mimic_pl.remote_path import Folder, RemotePath

OWN = "<knowledge base>/"
"""Beginning of stored paths that continue in the folder; no path of a file begins like this."""


def as_stored(entities: Sequence[Entity], folder: Path) -> list[Entity]:
    """Entities whose images in the folder have relative paths."""
    root = folder.resolve()

    def relative(image: ImageSource) -> ImageSource:
        path = Path(image) if isinstance(image, (str, Path)) else None
        return OWN + path.relative_to(root).as_posix() if path and path.is_relative_to(root) else image

    return [replace(entity, images=tuple(map(relative, entity.images))) for entity in entities]


def as_found(entities: Sequence[Entity], folder: Folder) -> list[Entity]:
    """The reverse: entities whose images are where the folder is now."""

    def absolute(image: ImageSource) -> ImageSource:
        if not isinstance(image, str) or not image.startswith(OWN):
            return image
        found = folder.resolve() / image.removeprefix(OWN)
        return found if isinstance(found, RemotePath) else str(found)

    return [replace(e, images=tuple(map(absolute, e.images))) if e.images else e for e in entities]
