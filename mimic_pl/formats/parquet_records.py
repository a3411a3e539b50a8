"""Reads records from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mimic_pl.errors import DataError
from mimic_pl.formats.source import RECREATE, Placed, open_binary

_ROWS = 1024
"""Rows in memory at the same time."""


def stream_parquet(path: Path) -> Iterator[Placed]:
    """Stream the rows of a Parquet file as records.

    Raises:
        DataError: It cannot be read as Parquet.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_binary(path) as file:
        if not file.seekable():
            raise DataError(f"{path} is a pipe or compressed. Parquet is read from plain files: it compresses itself.")
        try:
            number = 0
            for batch in ParquetFile(file).iter_batches(_ROWS):
                for row in batch.to_pylist():
                    yield "record", number, None, row
                    number += 1
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{path} cannot be read as Parquet: {reason}. {RECREATE}") from error
