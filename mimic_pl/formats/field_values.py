"""Values of fields: which of them are text, lists or paths inside a folder."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

from mimic_pl.formats.record_error import FieldError
from mimic_pl.quoting import quoted


def obvious_text(value: object) -> str | None:
    """The text of a finite number, or of a list of texts and numbers; ``None`` if there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        parts = [None if isinstance(part, list) else obvious_text(part) for part in value]
        known = [part for part in parts if part is not None]
        return ", ".join(known) if len(known) == len(parts) else None
    return None


def kind_of(value: object) -> str:
    """What a value is, for messages: ``a number``, ``NaN``, ``null``, ..."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def as_list(value: Any) -> Any:
    """The list that a text contains, as JSON or as pandas writes it to CSV; any other value is unchanged."""
    if not isinstance(value, str) or value[:1] != "[" or value[-1:] != "]":
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else value
    return value


def is_inside(name: str, folder: Path) -> bool:
    """Whether an absolute path without ``..`` lies in a folder; links inside the folder are trusted."""
    path = Path(name)
    return path.is_relative_to(folder) or path.is_relative_to(folder.resolve())


def valid_unicode(value: str, key: str) -> str:
    """Check a text for unpaired surrogates, which JSON allows but tokenizers reject."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FieldError(f"{quoted(key)} has an unpaired surrogate at {error.start}. Fix the text.") from error
    return value
