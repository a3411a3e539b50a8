"""The Lance dataset of an entity index on disk: importing Lance, opening the dataset, naming damage."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from mimic_pl.errors import MachineError, StoreError
from mimic_pl.ranking.lance_rows import INDEX, METADATA, RowFormat

if TYPE_CHECKING:
    from lance import LanceDataset

COMPLETE = "mimic_pl.complete"
"""Key in the configuration of a dataset that has all its rows."""

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
            "An entity index on disk cannot be used in a process that was forked from one that has already used one. "
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
        complete: Whether it has all its rows.
    """

    dataset: LanceDataset
    format: RowFormat
    complete: bool


def open_dataset(folder: Path) -> OpenDataset | None:
    """Open the dataset in a folder, complete or not; None if there is none.

    Raises:
        StoreError: It is damaged, or no entity index.
        MachineError: This process was forked from one that has used Lance.
    """
    if not (folder / "_versions").exists():
        return None
    with reading(folder):
        dataset = lance().dataset(str(folder))
        text = (dataset.schema.metadata or {}).get(METADATA.encode())
    if text is None:
        raise StoreError(f"{folder} contains a Lance dataset that is not an {INDEX}. Choose another folder.")
    with reading(folder):
        return OpenDataset(dataset, RowFormat.loads(text), COMPLETE in dataset.config())


def damaged_index(folder: Path, how: object) -> StoreError:
    """The error about an index that is damaged."""
    return StoreError(f"The {INDEX} in {folder} is damaged: {how}. Delete the folder to rebuild it.")


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn errors and panics of Lance and Arrow over damaged files into a StoreError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException, BufferError) as error:
        raise damaged_index(folder, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise damaged_index(folder, error) from error
