"""Text -> words, the same for every part that counts them."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in order: runs of letters, digits and underscores, lower-cased.

    Example:
        >>> words("Fountain-pen, 2nd hand")
        ['fountain', 'pen', '2nd', 'hand']
    """
    return _WORD.findall(text.lower())
