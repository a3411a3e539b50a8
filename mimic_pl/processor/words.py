"""Text -> the words that lexical scores count."""

from __future__ import annotations

import re

from bm25s.stopwords import STOPWORDS_EN

_ENGLISH = frozenset(STOPWORDS_EN)
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in order, repeated ones too: runs of Unicode word characters, lower-cased.

    Letters of every script, digits and the underscore are word characters; a hyphen or an apostrophe ends a word.

    Example:
        >>> words("St John's College, 1952")
        ['st', 'john', 's', 'college', '1952']
    """
    return _WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """The same without English stop words: 33 articles, pronouns and prepositions that say nothing of an entity."""
    return [word for word in words(text) if word not in _ENGLISH]
