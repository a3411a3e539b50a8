"""Names of the columns that hold an entity's text fields, which filters refer to."""

from __future__ import annotations

import re
from urllib.parse import unquote

TYPE = "type"
"""Text field, and column, of an entity's type, with which a mention's ``entity_type`` is compared."""

# A dot would be a part of a struct, a backtick ends a quoted name, a slash marks columns of states.
_NOT_IN_A_COLUMN = re.compile(r"[%./`\x00-\x1f\x7f]")

# Columns of every index, and those that Lance itself has in every table (_rowid, _rowaddr, ...).
_TAKEN = re.compile(r"(id|name)\Z|#|_row|_distance\Z|_score\Z", re.IGNORECASE)


def column_of(field: str) -> str:
    """Column of a text field: its own name, with percent-encoding where the engine could not tell it apart.

    Example:
        >>> column_of("type"), column_of("a.b"), column_of("id")
        ('type', 'a%2Eb', '%69d')
    """
    column = _NOT_IN_A_COLUMN.sub(lambda found: f"%{ord(found.group()):02X}", field)
    if _TAKEN.match(column):
        return f"%{ord(column[0]):02X}{column[1:]}"
    return column or "%"


def field_of(column: str) -> str | None:
    """Text field of a column, the inverse of :func:`column_of`; None for other columns."""
    if _TAKEN.match(column) or "/" in column:
        return None
    return "" if column == "%" else unquote(column)
