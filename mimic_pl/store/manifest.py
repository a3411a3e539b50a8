"""The manifest of a store: what it holds, how it is cut into shards, and what every shard must look like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mimic_pl.errors import StoreError
from mimic_pl.files import checksum_of, write_file

MANIFEST = "manifest.json"
"""The one commit point: a folder with this file is a store, one without is none."""

UNFINISHED = "manifest.unfinished.json"
"""The manifest of a build under way, with the shards that are whole; renaming it to :data:`MANIFEST` is the commit."""

FORMAT = "mimic_pl store"
VERSION = 2

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}


@dataclass(frozen=True)
class Column:
    """A named array of a store: its first dimension counts rows.

    Attributes:
        dtype: Type of its numbers.
        shape: Shape of one row.
    """

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def bytes_per_row(self) -> int:
        """Bytes that one row takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
        file: Its name.
        rows: Rows in it.
        bytes: Its size.
        crc32: CRC-32 of its content, eight hexadecimal digits.
    """

    file: str
    rows: int
    bytes: int
    crc32: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a store without reading its data.

    Attributes:
        kind: What it is, for people and against mistakes: ``"entity index"``.
        description: What it was made from, plain JSON values by name.
        columns: Its arrays by name.
        rows: Rows of the whole store; ``None`` for one that grows.
        rows_per_shard: Rows of a full shard.
        shards: Its files, in order.
    """

    kind: str
    description: dict[str, Any]
    columns: dict[str, Column]
    rows: int | None
    rows_per_shard: int
    shards: tuple[Shard, ...] = ()

    @property
    def rows_written(self) -> int:
        """Rows in its shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes_per_row(self) -> int:
        """Bytes that one row takes in all columns."""
        return sum(column.bytes_per_row for column in self.columns.values())

    def with_shards(self, shards: tuple[Shard, ...]) -> Manifest:
        """The same store with these shards."""
        return replace(self, shards=shards)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        columns = {
            name: {"dtype": str(column.dtype).removeprefix("torch."), "shape": list(column.shape)}
            for name, column in self.columns.items()
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "description": self.description,
            "rows": self.rows,
            "rows_per_shard": self.rows_per_shard,
            "columns": columns,
            "shards": [asdict(shard) for shard in self.shards],
        }
        content["crc32"] = _checksum(content)
        write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read it.

        Raises:
            StoreError: It is of another format or version, or damaged.
        """
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise StoreError(f"{path} is no manifest of a store that mimic-pl wrote. Choose another folder.")
            if content["version"] != VERSION:
                raise StoreError(
                    f"{path} is of format version {content['version']!r}, and this version of mimic-pl reads version "
                    f"{VERSION}. Build it again, or use the mimic-pl that wrote it."
                )
            if content.pop("crc32") != _checksum(content):
                raise ValueError("its content is not what was written (checksum)")
            columns = {
                name: Column(_DTYPES[column["dtype"]], tuple(map(int, column["shape"])))
                for name, column in content["columns"].items()
            }
            shards = tuple(Shard(**shard) for shard in content["shards"])
            manifest = cls(
                str(content["kind"]),
                dict(content["description"]),
                columns,
                content["rows"],
                int(content["rows_per_shard"]),
                shards,
            )
            if any(Path(shard.file).name != shard.file or shard.rows < 1 for shard in shards):
                raise ValueError("a shard without rows or outside of the folder")
            if path.name == MANIFEST and manifest.rows not in (None, manifest.rows_written):
                raise ValueError(f"{manifest.rows} rows, of which its shards hold {manifest.rows_written}")
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StoreError(
                f"The manifest {path} is damaged ({type(error).__name__}: {error}). Delete the folder and build it "
                "again."
            ) from error
        return manifest

    def differences(self, other: Manifest) -> list[str]:
        """In what the two are not the same store, in words; shards and sizes of what is written do not count."""
        found = [] if self.kind == other.kind else [f"it is of kind {self.kind!r}, and {other.kind!r} is wanted"]
        found += unmet(self.description, other.description)
        found += [
            f"{key} is {self.description[key]!r}, and none is wanted"
            for key in self.description.keys() - other.description
        ]
        for name in sorted({*self.columns, *other.columns}):
            have, want = self.columns.get(name), other.columns.get(name)
            if have != want:
                found.append(f"column {name!r} is {_in_words(have)}, and {_in_words(want)} is wanted")
        for what in ("rows", "rows_per_shard"):
            if getattr(self, what) != getattr(other, what):
                found.append(f"{what} is {getattr(self, what)}, and {getattr(other, what)} is wanted")
        return found


def plain(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it will be read back: only what JSON holds.

    Raises:
        ValueError: It holds something else.
    """
    try:
        return dict(json.loads(json.dumps(dict(description), allow_nan=False)))
    except TypeError as error:
        raise ValueError(f"a store is described by plain JSON values only: {error}") from error


def unmet(description: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which wanted values a description does not have, in words."""
    return [
        f"{key} is {description.get(key)!r}, and {value!r} is wanted"
        for key, value in wanted.items()
        if key not in description or description[key] != value
    ]


def _checksum(content: Mapping[str, Any]) -> str:
    """CRC-32 of a manifest's values, however they are laid out in the file."""
    return checksum_of(json.dumps(content, sort_keys=True).encode())


def _in_words(column: Column | None) -> str:
    if column is None:
        return "not there"
    return f"{str(column.dtype).removeprefix('torch.')} {list(column.shape)}"
