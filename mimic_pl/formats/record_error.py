"""Errors of single records, which leave the other records of a file readable."""

from __future__ import annotations

from pathlib import Path

from mimic_pl.errors import DataError
from mimic_pl.quoting import quoted


class FieldError(DataError):
    """A field of a record that cannot be used.

    Args:
        message: What is wrong with it.
        kind: Errors of one kind are reported once, with their number; by default those with the same message.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or message


class RecordError(DataError):
    """A record of a file that cannot be used; readers yield it in place of the record.

    Args:
        path: The file, or the name of the data set.
        unit: What its number counts: ``record`` (from 0) or ``line`` (from 1).
        number: Its number.
        record_id: Its id, if it has one.
        reason: What is wrong.
    """

    def __init__(self, path: Path | str, unit: str, number: int, record_id: object, reason: FieldError) -> None:
        self.place = f"{unit} {number}" + ("" if record_id is None else f" (id {quoted(record_id)})")
        self.number = number
        self.reason = str(reason)
        self.kind = reason.kind
        super().__init__(f"{path}, {self.place}: {self.reason}")
