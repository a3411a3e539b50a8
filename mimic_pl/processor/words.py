"""Splits texts into words, for lexical scores."""

from __future__ import annotations

import re

from bm25s.stopwords import STOPWORDS_EN

_ENGLISH = frozenset(STOPWORDS_EN)
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in order, with repetitions: runs of Unicode word characters, lower-cased.

    Word characters are letters of any script, digits and the underscore; hyphens and apostrophes separate words.

    Example:
        >>> words("St John's College, 1952")
        ['st', 'john', 's', 'college', '1952']
    """
    return _WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """The words of a text without 33 English stop words (articles, pronouns and prepositions)."""
    return [word for word in words(text) if word not in _ENGLISH]
