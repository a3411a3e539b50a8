"""Links as tables: CSV with a row for each candidate, Parquet with a row for each mention."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import Any

from mimic_pl.escaping import spreadsheet
from mimic_pl.formats.part_file import Records

_OF_MENTION = ("number", "id", "mention", "sentence", "start", "end")
_ROWS = 4096
"""Mentions in memory, and in a row group."""


def write_csv(records: Records, path: Path) -> None:
    """Write links as CSV.

    Each candidate has a row, ``rank`` 1 is the best; a mention without candidates has one row without a rank. The
    scores of the units have columns of their own, ``score_`` and the unit's name. Texts that a spreadsheet would take
    for formulas begin with an apostrophe (see :func:`mimic_pl.escaping.spreadsheet`).
    """
    units = dict.fromkeys(unit for row in records() for link in row["candidates"] for unit in link["units"])
    columns = (
        *_OF_MENTION,
        "rank",
        "entity",
        "name",
        "score",
        "probability",
        "nil_probability",
        "nil",
        "certified",
        "error",
    )
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)  # ends lines with \r\n, so that both of these are quoted in cells
        table.writerow([*columns, *(f"score_{unit}" for unit in units)])
        for row in records():
            mention = [row.get(key) for key in _OF_MENTION]
            certified = None if row["certified"] is None else str(row["certified"]).lower()
            about = [row["nil_probability"], str(row["nil"]).lower(), certified, row["error"]]
            for rank, link in enumerate(row["candidates"], 1):
                own = [rank, link["id"], link["name"], link["score"], link["probability"]]
                scores = [link["units"].get(unit) for unit in units]
                table.writerow([spreadsheet(value) for value in (*mention, *own, *about, *scores)])
            if not row["candidates"]:
                table.writerow([spreadsheet(value) for value in (*mention, *[None] * 5, *about, *[None] * len(units))])


def write_parquet(records: Records, path: Path) -> None:
    """Write links as Parquet: a row for each mention, its candidates a list of structures."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    text, real = pyarrow.string(), pyarrow.float64()
    candidate = {"id": text, "name": text, "score": real, "probability": real, "units": pyarrow.map_(text, real)}
    schema = pyarrow.schema(
        {
            "number": pyarrow.int64(),
            "id": text,
            "mention": text,
            "sentence": text,
            "start": pyarrow.int64(),
            "end": pyarrow.int64(),
            "image": text,
            "golds": pyarrow.list_(text),
            "fields": pyarrow.map_(text, text),
            "candidates": pyarrow.list_(pyarrow.struct(candidate)),
            "nil_probability": real,
            "nil": pyarrow.bool_(),
            "certified": pyarrow.bool_(),
            "error": text,
        }
    )
    with ParquetWriter(path, schema) as writer:
        rows = map(_arrow_row, records())
        while batch := list(islice(rows, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _arrow_row(record: dict[str, Any]) -> dict[str, Any]:
    row = _valid_unicode(record)
    row["fields"] = list(row.get("fields", {}).items())
    row["golds"] = row.get("golds", [])
    for candidate in row["candidates"]:
        candidate["units"] = list(candidate["units"].items())
    return row


def _valid_unicode(value: Any) -> Any:
    """The value with ``?`` for unpaired surrogates, which Arrow has no encoding for."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_valid_unicode(part) for part in value]
    if isinstance(value, dict):
        return {_valid_unicode(key): _valid_unicode(part) for key, part in value.items()}
    return value
