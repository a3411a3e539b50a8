"""Images that are stored under another name than the data files give."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any


class RenamedFiles:
    """Files of a folder whose names have the suffix ``.jpg`` instead of their own, as published mention images have.

    A name leads to the file of exactly this name; else to its part before the last dot, with ``.jpg``; else to its part
    before the first dot, with ``.jpg``, as in the published code. Since several names can lead to one file
    (``a.b.png`` and ``a.c.png`` to ``a.jpg``), a renamed file is only used if no other name leads to it.

    Args:
        folder: The folder.
        names: Returns the names of all images of the data set; called on first need.
    """

    def __init__(self, folder: Path, names: Callable[[], Iterable[str]]) -> None:
        self.folder = folder
        self._read_names = names

    def find(self, name: str) -> tuple[Path | None, str | None]:
        """The file of a name, if there is one; and another name that leads to the same renamed file, if any."""
        file = self._file(name)
        if file is None:
            return None, None
        renamed = _normalized(file) != _normalized(name)
        others = [other for other in self._names_by_file.get(file, ()) if other != _normalized(name)] if renamed else []
        return self.folder / file, next(iter(others), None)

    @cached_property
    def _names_by_file(self) -> dict[str, tuple[str, ...]]:
        """By file, up to two different names that lead to it."""
        found: dict[str, tuple[str, ...]] = {}
        for name in dict.fromkeys(map(_normalized, self._read_names())):
            file = self._file(name)
            if file is not None and len(found.get(file, ())) < 2:
                found[file] = (*found.get(file, ()), name)
        return found

    def _file(self, name: str) -> str | None:
        for own in (name, _normalized(name)):
            # os.path.isfile: unlike Path.is_file, it returns False for a name that is too long.
            if os.path.isfile(self.folder / own):
                return own
        last = PurePosixPath(_normalized(name)).name
        for stem in (last.rpartition(".")[0] or last, last.partition(".")[0]):
            if stem and os.path.isfile(self.folder / f"{stem}.jpg"):
                return f"{stem}.jpg"
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the names for loader processes, instead of the data set they come from."""
        return {"folder": self.folder, "_read_names": tuple, "_names_by_file": self._names_by_file}


def _normalized(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))
