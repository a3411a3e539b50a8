"""Quotes values of data files in messages: short whatever their size, and without control characters."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

_SHOWN = 5


class _Quotes(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlist = self.maxdict = self.maxtuple = self.maxset = 3
        self.maxlevel = 2


quoted = _Quotes().repr
"""A value's ``repr`` in at most about a hundred characters; a long text is never formatted as a whole."""


def listed(names: Iterable[str]) -> str:
    """The first of these names, quoted: ``'id', 'qid', ... and 7 more``."""
    names = list(names)
    more = f", ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(quoted, names[:_SHOWN])) + more if names else "none"
