"""Reads the records of a file in any of the formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mimic_pl.formats.csv_records import DELIMITERS, stream_csv
from mimic_pl.formats.json_records import LINES, stream_json
from mimic_pl.formats.parquet_records import stream_parquet
from mimic_pl.formats.source import COMPRESSIONS, Placed, as_data_errors, open_text

PARQUET = ".parquet"

SUFFIXES = tuple(
    f"{suffix}{compression}"
    for compression in ("", *COMPRESSIONS)
    for suffix in (".json", *LINES, *DELIMITERS, *([] if compression else [PARQUET]))
)
"""Suffixes of files with records."""


def read_records(path: Path, title: str | None, key: str = "id") -> Iterator[tuple[str, int, Any]]:
    """Stream the records of a file, one at a time.

    Args:
        path: The file; its name says the format (see :mod:`mimic_pl.formats`).
        title: Title of the progress bar; ``None`` for none.
        key: Field that the keys of an object of records are stored in, in records without it.

    Yields:
        What the number counts (``record``, from 0, or ``line``, from 1), the number, and the record: a dictionary, or
        whatever else the file has in its place; a DataError if that cannot be read as a record.

    Raises:
        DataError: The file cannot be read, but only after the records before the error.
    """
    with as_data_errors(path):
        stream = _stream(path)
        bar = stream if title is None else tqdm(stream, desc=title, unit=" records", leave=False, delay=2)
        for unit, number, name, row in bar:
            if name is not None and row.get(key) is None:
                row[key] = name
            yield unit, number, row


def _stream(path: Path) -> Iterator[Placed]:
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        suffix = path.with_suffix("").suffix.lower()
    if suffix == PARQUET:
        yield from stream_parquet(path)
        return
    with open_text(path) as file:
        yield from (stream_csv if suffix in DELIMITERS else stream_json)(path, file, suffix)
