"""Splits texts into words, for lexical scores."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

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


@lru_cache(maxsize=1 << 16)
def term_id(term: str) -> int:
    """Id of a term, from 0 to 2^63 - 1: a hash, the same on every machine and for every knowledge base.

    Different terms have different ids, except with probability n^2 / 2^64 among n terms: 5e-8 for a million.

    Example:
        >>> term_id("fountain")
        8884285240504006002
    """
    return int.from_bytes(blake2b(term.encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1
