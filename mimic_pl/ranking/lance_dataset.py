"""The Lance dataset of an entity index on disk: importing Lance, opening the dataset, naming damage."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa

from mimic_pl.errors import MachineError, StoreError
from mimic_pl.escaping import shortened
from mimic_pl.ranking.lance_rows import METADATA, ORDER, VERSION, OtherVersion, RowFormat
from mimic_pl.ranking.own_files import as_found
from mimic_pl.records import Entity
from mimic_pl.remote_path import LANCE_OPTIONS, Folder, RemotePath, file_sizes

if TYPE_CHECKING:
    from lance import LanceDataset

COMPLETE = "mimic_pl.complete"
"""Key in the configuration of a dataset that has all its rows."""

VERSIONS = "_versions"
"""Folder of a dataset's manifests."""

_LOCATION = re.compile(r",? ?(location: )?/\S+\.rs:\d+:\d+|(Invalid user input|External error|Schema error): ")

_MISSING = re.compile(r"ot found: \S+\.(lance|arrow|manifest|txn)|at path \S+\.manifest was not found")
"""Part of Lance's messages about files that do not exist."""

_NO_ACCESS = re.compile(
    r"Generic \S+ error|Error performing|HTTP error|necessary privileges|Failed to (get|load|resolve)"
)
"""Part of Lance's messages about object storage that cannot be reached, or that denies access."""

_TRIES = 20

T = TypeVar("T")

_used_by: int | None = None


def lance() -> ModuleType:
    """Import Lance on first use.

    Raises:
        MachineError: This process was forked from one that has used it.
    """
    global _used_by
    if _used_by is None:
        os.environ.setdefault("LANCE_LOG", "error")
    elif _used_by != os.getpid():
        # With pylance 14, such a process crashes with a segmentation fault or hangs.
        raise MachineError(
            "A knowledge base or index on disk cannot be used in a process that was forked from one that has used one. "
            "Start the process with the 'spawn' or 'forkserver' method of multiprocessing."
        )
    import lance as library

    if _used_by is None:
        # It warns about every fork, even of processes that never use it, such as data loader workers.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        _used_by = os.getpid()
    return library


class OpenDataset(NamedTuple):
    """A dataset on disk.

    Attributes:
        dataset: The Lance dataset.
        format: Its columns and its description.
        complete: Whether it has all its rows; an unfinished build resumes.
    """

    dataset: LanceDataset
    format: RowFormat
    complete: bool

    @property
    def version(self) -> int:
        """Number of the version."""
        return int(self.dataset.version)


def dataset_at(folder: Folder, version: int | None = None) -> LanceDataset:
    """The Lance dataset in a folder; errors are Lance's own.

    Args:
        folder: The folder.
        version: Version to open; the newest by default.
    """
    options = LANCE_OPTIONS if isinstance(folder, RemotePath) else None
    return lance().dataset(address_of(folder), version=version, storage_options=options)


def address_of(folder: Folder) -> str:
    """A folder as Lance opens it: a relative path with a colon in it would be the address of a remote one."""
    return str(folder if isinstance(folder, RemotePath) else folder.absolute())


def dataset_exists(folder: Folder) -> bool:
    """Whether a folder contains a dataset: a process killed while it creates one leaves only empty folders."""
    return any(folder.glob(f"{VERSIONS}/*.manifest"))


def open_dataset(folder: Folder, version: int | None = None) -> OpenDataset | None:
    """Open the dataset in a folder, complete or not; None if there is none.

    Args:
        folder: The folder.
        version: Version to open; the newest by default.

    Raises:
        StoreError: It is damaged, or no entity index, or has no such version.
        MachineError: This process was forked from one that has used Lance.
    """
    if not dataset_exists(folder):
        if (folder / VERSIONS).exists() and any(folder.glob("data/*.lance")):
            raise damaged_index(folder, "it has data, but no manifest")
        return None
    lance()
    with reading(folder):
        dataset = _while_compacted(lambda: dataset_at(folder))
        newest = dataset.version
        if version not in (None, newest):
            try:
                dataset = dataset_at(folder, version)
            except (OSError, ValueError) as error:
                if not names_missing_file(error):
                    raise
                raise StoreError(
                    f"{folder} has no version {version}. Its newest version is {newest}; old ones are removed when it "
                    "is compacted."
                ) from error
    with reading(folder):
        text = (dataset.schema.metadata or {}).get(METADATA.encode())
    if text is None and ORDER in dataset.schema.names:
        raise damaged_index(folder, "it has lost its description")
    if text is None:
        raise StoreError(f"{folder} contains a Lance dataset of another program. Choose another folder.")
    try:
        with reading(folder):
            return OpenDataset(dataset, RowFormat.loads(text, dataset.schema.names), COMPLETE in dataset.config())
    except OtherVersion as version_error:
        raise StoreError(
            f"{folder} was written by another version of mimic-pl (format {version_error}; this one reads {VERSION}). "
            "Build it again in another folder, or delete it first."
        ) from version_error


def require_complete(folder: Folder, opened: OpenDataset | None, what: str) -> OpenDataset:
    """The dataset itself, if it is there with all its rows.

    Args:
        folder: Its folder.
        opened: The dataset, if there is one.
        what: What it is, for the message.

    Raises:
        StoreError: It is missing or unfinished.
    """
    if opened is None or not opened.complete:
        rows = opened.dataset.count_rows() if opened else 0
        state = f"is unfinished: {rows} entities are written" if rows else f"contains no {what}"
        how = "Run the command that builds it" if isinstance(folder, Path) else "Copy one there that is complete"
        raise StoreError(f"{folder} {state}. {how}, or check the path.")
    return opened


def records_with_ids(folder: Folder, opened: OpenDataset, ids: Sequence[str]) -> list[tuple[int, Entity]]:
    """Order numbers and records of the entities with some of these ids, in any order; the engine looks them up.

    Raises:
        StoreError: A row is damaged.
    """
    ids = [id for id in ids if id.isascii() or storable(id)]
    if not ids:
        return []
    with reading(folder, opened.version):
        table = opened.dataset.to_table(
            filter=has_id(ids), columns=opened.format.record_columns, late_materialization=True
        )
    return list(zip(table.column(ORDER).to_pylist(), intact_records(folder, opened.format, table), strict=True))


def stored_ids(folder: Folder, opened: OpenDataset, ids: Sequence[str]) -> list[str]:
    """The ids of the rows with one of these ids, damaged rows included: only ids are read.

    Raises:
        StoreError: The ids are damaged.
    """
    ids = [id for id in ids if storable(id)]
    if not ids:
        return []
    with reading(folder, opened.version):
        found: list[str] = opened.dataset.to_table(filter=has_id(ids), columns=["id"]).column("id").to_pylist()
        return found


def intact_records(folder: Folder, row_format: RowFormat, table: pa.Table) -> list[Entity]:
    """Decode the records of rows.

    Raises:
        StoreError: A row is damaged.
    """
    with reading(folder):
        records, damaged = row_format.entities(table)
    if damaged:
        raise damaged_row(folder, table.take(damaged[:1]))
    return as_found(records, folder)


def storable(text: str) -> bool:
    """Whether a text can be stored: halves of characters cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_id(ids: Sequence[str]) -> str:
    """Filter for the rows with these ids."""
    return f"id IN ({','.join(map(sql_text, ids))})"


def sql_text(text: str) -> str:
    """A text as a literal of a filter."""
    return "'" + text.replace("'", "''") + "'"


def wrong_files(folder: Folder, dataset: LanceDataset) -> Iterator[str]:
    """Say which data files do not exist, or do not have the expected size."""
    files = [file for fragment in dataset.get_fragments() for file in fragment.metadata.files]
    sizes = file_sizes(folder / "data", [file.path for file in files])
    for file in files:
        path, size = folder / "data" / file.path, sizes.get(file.path)
        if size is None:
            yield f"{path} is missing."
        elif file.file_size_bytes not in (None, size):
            yield f"{path} has {size} bytes instead of {file.file_size_bytes}: it was truncated or replaced."


def reason_of(error: BaseException | None) -> str:
    """What an error of Lance says, without the place in Lance's source."""
    return shortened(_LOCATION.sub("", str(error)).strip().rstrip("."), 300)


def damaged_index(folder: Folder, how: str) -> StoreError:
    """The error about an index that is damaged."""
    return StoreError(f"{folder} is damaged: {how}. Restore it from a copy, or delete it and build it again.")


def damaged_row(folder: Folder, row: pa.Table) -> StoreError:
    """The error about a damaged row, given with its id and order number."""
    (id,), (order,) = row.column("id").to_pylist(), row.column(ORDER).to_pylist()
    return damaged_index(folder, f"the entity {id!r} with the order number {order} fails its checksum")


@contextmanager
def reading(folder: Folder, version: int | None = None) -> Iterator[None]:
    """Turn errors and panics of Lance and Arrow over damaged, removed or unreachable files into a StoreError.

    Args:
        folder: Folder of the dataset.
        version: The version that is read, if it may have been removed since it was opened.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException, BufferError) as error:
        raise _reading_error(folder, version, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _reading_error(folder, version, error) from error


def _reading_error(folder: Folder, version: int | None, error: BaseException) -> StoreError:
    if isinstance(folder, RemotePath) and _NO_ACCESS.search(str(error)) and not names_missing_file(error):
        return folder.unreadable(reason_of(error))
    damaged = damaged_index(folder, reason_of(error))
    return removed_or(folder, version, damaged) if version is not None and names_missing_file(error) else damaged


def names_missing_file(error: BaseException) -> bool:
    """Whether an error of Lance is about a file that does not exist."""
    return _MISSING.search(str(error)) is not None


def removed_or(folder: Folder, version: int, error: StoreError) -> StoreError:
    """The error about a missing file: that the version was removed if there is a newer one, or else the given one."""
    with reading(folder):
        newest = _while_compacted(lambda: dataset_at(folder).version)
    if newest == version:
        return error
    return StoreError(
        f"Version {version} of {folder} was removed by a compaction. Open it again to read version {newest}; a longer "
        "keep_hours of the compaction keeps old versions for their readers."
    )


def versions_of(folder: Folder) -> list[dict[str, Any]]:
    """Lance's description of all versions, oldest first."""
    with reading(folder):
        return [dict(version) for version in _while_compacted(lambda: dataset_at(folder).versions())]


def _while_compacted(read: Callable[[], T]) -> T:
    """Read manifests, of which a compaction in another process may just remove some."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except (OSError, ValueError) as error:
            if not names_missing_file(error):
                raise
    return read()
