"""Statistics of a whole knowledge base, such as document frequencies: small arrays kept with a version."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from mimic_pl.errors import StoreError
from mimic_pl.files import UNFINISHED_SUFFIX, write_file
from mimic_pl.remote_path import Folder, RemotePath, local_folder

FOLDER = "statistics"
"""Folder of the statistics in that of a knowledge base."""

_FILE = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.v(?P<version>\d+)\.(?P<crc32>[0-9a-f]{8})\.safetensors")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLAIN = "plain"

Statistics = Mapping[str, Any]
"""Arrays and plain JSON values by name."""


class _File(NamedTuple):
    path: Path | RemotePath
    name: str
    version: int
    crc32: str


def read_statistics(folder: Folder, name: str, version: int) -> dict[str, Any] | None:
    """The statistics of a version: those written for it, or for the last version before it that has any.

    Args:
        folder: Folder of the knowledge base.
        name: Their name.
        version: The version.

    Returns:
        Arrays and plain values by name; None if there are none.

    Raises:
        StoreError: They are damaged.
    """
    files = [file for file in _files(folder) if file.name == name and file.version <= version]
    return _read(max(files, key=lambda file: file.version)) if files else None


def write_statistics(folder: Path, statistics: Mapping[str, Statistics], version: int) -> None:
    """Write statistics for a version that is about to be committed; until it is, nobody reads them.

    Args:
        folder: Folder of the knowledge base.
        statistics: Arrays and plain values, by name, for each name.
        version: The version.

    Raises:
        StoreError: The disk is full, or the folder is not writable.
        ValueError: A name is no plain word.
    """
    for name, values in statistics.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be letters, digits, hyphens and underscores")
        arrays = {key: np.ascontiguousarray(value) for key, value in values.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in values.items() if key not in arrays}
        content = safetensors.numpy.save(arrays, {_PLAIN: json.dumps(plain)})
        (folder / FOLDER).mkdir(exist_ok=True)
        write_file(folder / FOLDER / f"{name}.v{version}.{zlib.crc32(content):08x}.safetensors", content)


def remove_uncommitted(folder: Path, version: int) -> None:
    """Remove the statistics of versions after this one, which a killed writer has not committed."""
    for path in (folder / FOLDER).glob("*" + UNFINISHED_SUFFIX):
        path.unlink()
    for file in _files(folder):
        if file.version > version:
            local_folder(file.path).unlink(missing_ok=True)


def remove_old(folder: Path, oldest: int) -> None:
    """Remove statistics that no version from this one on reads."""
    last: dict[str, int] = {}
    files = list(_files(folder))
    for file in files:
        if file.version <= oldest:
            last[file.name] = max(file.version, last.get(file.name, 0))
    for file in files:
        if file.version < last.get(file.name, 0):
            local_folder(file.path).unlink(missing_ok=True)


def verify_statistics(folder: Folder) -> Iterator[str]:
    """Say which statistics are damaged."""
    for file in _files(folder):
        try:
            _read(file)
        except StoreError as error:
            yield str(error)


def _files(folder: Folder) -> Iterator[_File]:
    if not (folder / FOLDER).is_dir():
        return
    paths: list[Path | RemotePath] = [*(folder / FOLDER).iterdir()]
    for path in sorted(paths, key=str):
        if found := _FILE.fullmatch(path.name):
            yield _File(path, found["name"], int(found["version"]), found["crc32"])


def _read(file: _File) -> dict[str, Any]:
    try:
        content = file.path.read_bytes()
        if f"{zlib.crc32(content):08x}" != file.crc32:
            raise ValueError("its content fails its checksum")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        plain = json.loads(header["__metadata__"][_PLAIN])
        return {**plain, **safetensors.numpy.load(content)}
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise StoreError(
            f"{file.path}, statistics of the knowledge base, cannot be read: {error}. Restore the file from a copy, or "
            "index the knowledge base again."
        ) from error
