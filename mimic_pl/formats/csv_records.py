"""Reads records from CSV and TSV files, whose cells are all text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from mimic_pl.errors import DataError
from mimic_pl.formats.source import Placed
from mimic_pl.quoting import listed

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
"""Possible delimiters by suffix; the first line decides."""

_LONGEST = 1 << 24
"""Characters of the longest line."""


def stream_csv(path: Path, file: TextIO, suffix: str) -> Iterator[Placed]:
    """Stream the rows of a CSV or TSV file as records.

    Args:
        path: The file, for messages.
        file: Its text, with its line ends unchanged.
        suffix: ``.csv`` or ``.tsv``.

    Yields:
        The records; in place of a row with too few or too many cells, a DataError.

    Raises:
        DataError: The file is not valid CSV, or two columns have one name.
    """
    lines = _lines(path, file)
    header = next(lines, "")
    delimiter = max(DELIMITERS[suffix], key=header.count)
    rows = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    line = 1
    try:
        names = [name.strip() for name in next(rows, [])]
        repeated = [name for at, name in enumerate(names) if name in names[:at]]
        if repeated:
            raise DataError(f"{path} has more than one column {listed(repeated)}. Give each column its own name.")
        line = rows.line_num + 1
        for row in rows:
            if len(row) == len(names):
                yield "line", line, None, dict(zip(names, row, strict=True))
            elif row:  # not an empty line
                yield "line", line, None, DataError(f"it has {len(row)} cells, but the file has {len(names)} columns.")
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: {error}. Quote each cell that contains a delimiter, a quote or a line break, and "
            f"double the quotes in it; cells have at most {csv.field_size_limit():,} characters. JSON Lines has no "
            "such rules."
        ) from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise DataError(f"{path}, line {number} has more than {_LONGEST:,} characters: it is not CSV.")
        yield line
