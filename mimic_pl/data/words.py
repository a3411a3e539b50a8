"""Text -> the words that lexical scores count."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in order, repeated ones too: runs of Unicode word characters, lower-cased.

    Letters of every script, digits and the underscore are word characters; a hyphen or an apostrophe ends a word.

    Example:
        >>> words("St John's College, 1952")
        ['st', 'john', 's', 'college', '1952']
    """
    return _WORD.findall(text.lower())
