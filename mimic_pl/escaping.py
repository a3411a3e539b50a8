"""Makes text from data sets and files safe to show: in a terminal, in Markdown, in a spreadsheet."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    # C0 and C1 control characters except tab and newline, line separators, overrides of the writing direction, which
    # make a text look like another, and surrogates, which no encoding can write.
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKUP = re.compile(r"[\\`*\[\]<|~$&]|(?<![^\W_])_|_(?![^\W_])")
_AT = re.compile(r"@(?=[\w-]+\.)")
_FORMULA = re.compile(r"[=+\-@\t\r]")


def printable(text: str) -> str:
    r"""Escape what would control a terminal.

    Example:
        >>> printable("Paris\x1b[2J")
        'Paris\\x1b[2J'
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def shortened(text: str, length: int) -> str:
    """Shorten a text to a number of characters, by leaving out its middle.

    Example:
        >>> shortened("abcdefghij", 7)
        'abc…hij'
    """
    if len(text) <= length:
        return text
    front = length // 2
    return f"{text[:front]}…{text[len(text) - (length - 1 - front) :]}"


def markdown_text(text: object) -> str:
    r"""Escape a text for Markdown, on one line: also for a cell of a table, and without live links.

    Example:
        >>> print(markdown_text("[a|b](https://c.d)"))
        \[a\|b\](https:&#47;&#47;c.d)
    """
    line = printable(" ".join(str(text).split()))
    escaped = _MARKUP.sub(lambda found: "&lt;" if found.group() == "<" else f"\\{found.group()}", line)
    # Addresses become links by themselves.
    return _AT.sub("&#64;", escaped.replace("://", ":&#47;&#47;").replace("www.", "www&#46;"))


def spreadsheet(value: object) -> object:
    """Quote a text that a spreadsheet would evaluate as a formula; numbers are unchanged.

    Example:
        >>> spreadsheet("=1+1"), spreadsheet(-1.5)
        ("'=1+1", -1.5)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
