"""Reads JSON with one object a line, in an array or without one: large dumps, of which a line may be damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimic_pl.errors import DataError
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.source import RECREATE, as_data_errors, open_text

_LONGEST = 1 << 28
"""Characters of the longest line."""


def has_object_per_line(path: Path) -> bool:
    """Whether the first object of a file fills a line, which a comma may end; a pipe cannot be looked into."""
    if not path.is_file():
        return False
    with open_text(path) as file:
        while line := file.readline(_LONGEST):
            if (text := _bare(line)) not in ("", "["):
                try:
                    return isinstance(json.loads(text), dict)
                except ValueError:
                    return False
    return False


def stream_object_lines(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Stream the objects of a file; brackets and commas around them are ignored.

    Yields:
        ``line``, the number of the line, and the object; in place of a damaged one, a DataError.

    Raises:
        DataError: The file cannot be read, but only after the objects before the error.
    """
    with as_data_errors(path), open_text(path) as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if len(line) == _LONGEST:
                raise DataError(f"{path}, line {number} has more than {_LONGEST:,} characters. {RECREATE}")
            if (text := _bare(line)) not in ("", "[", "]"):
                yield "line", number, _decoded(text)


def _bare(line: str) -> str:
    return line.strip().removesuffix(",").rstrip()


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return FieldError(f"it is not valid JSON: column {error.colno}: {error.msg}. {RECREATE}", "no JSON")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; too many brackets
        return FieldError(f"it is not valid JSON: {error}. {RECREATE}", "no JSON")
