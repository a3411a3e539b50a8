"""Reads JSON files as a whole, and streams of records from lists, objects and lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # what JSON counts as white space
from pathlib import Path
from typing import Any, TextIO

from mimic_pl.errors import DataError
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.source import RECREATE, Placed, open_text
from mimic_pl.quoting import listed, quoted

LINES = (".jsonl", ".ndjson")
"""Suffixes of JSON Lines. Other files are JSON Lines if the first line is a record and another follows."""

_CHUNK = 1 << 20
_LONGEST = 1 << 28
"""Characters of the longest value: without a limit, all that follows an unclosed quote would be read into memory."""

_TAIL = 16
"""Characters at the end of a text in which an error may only mean that the text goes on: an escaped surrogate pair."""

_EXPECTED = "expected a list of records, an object of records, or one record per line"


class _RepeatedKeyError(Exception):
    """A key occurs twice in one object."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for at, key in enumerate(keys) if key in keys[:at]))
    return found


def _repeated(error: _RepeatedKeyError) -> str:
    return f"the key {quoted(error.args[0])} occurs twice in one object. Keep one of them."


_decode = json.JSONDecoder(object_pairs_hook=_without_repeats).raw_decode


def read_json(path: Path) -> Any:
    """Read a JSON file as a whole.

    Raises:
        DataError: It cannot be read, or is not valid JSON; the message has line and column.
    """
    with open_text(path) as file:
        window = _Window(path, file)
        with window.located():
            return window.only_value()


def stream_json(path: Path, file: TextIO, suffix: str) -> Iterator[Placed]:
    """Stream the records of a JSON file; only the part of the file needed for the next one is in memory.

    Args:
        path: The file, for messages.
        file: Its text.
        suffix: Suffix of its name, which distinguishes JSON Lines from one object.

    Raises:
        DataError: The file is not valid JSON, but only after the records before the error; or it has another layout.
            In JSON Lines, a damaged line is yielded as a DataError, and the others are read.
    """
    window = _Window(path, file)
    with window.located():
        first = window.next_character()
        if first == "[":
            for number, value in enumerate(window.elements()):
                yield "record", number, None, value
            window.require_end()
        elif first == "{" and (suffix in LINES or window.is_lines()):
            while window.next_character():
                line = window.line
                yield "line", line, None, window.record_of_line(line)
        elif first == "{":
            yield from _members(window)
            window.require_end()
        elif not first:
            raise DataError(f"{path} is empty.")
        else:
            window.advice = "A file that is not JSON has a name that says so: .csv, .tsv or .parquet."
            raise DataError(f"{path} contains a JSON {type(window.only_value()).__name__}; {_EXPECTED}.")


def _members(window: _Window) -> Iterator[Placed]:
    """The records in an object: its members, those of its only list, or the object itself."""
    lists: list[str] = []
    records: list[tuple[str, Any]] = []  # the last member that is an object: the next one shows whether it is a record
    rest: dict[str, Any] = {}
    count = 0
    for key in window.member_keys():
        begins = window.begins()
        if begins in ("[{", "[["):
            lists.append(key)
            if len(lists) > 1:
                raise DataError(f"{window.path} has several lists of records: {listed(lists)}. Write a file for each.")
            if count:
                raise DataError(
                    f"{window.path} has single records and a list of records, {quoted(key)}. Write a file for each."
                )
            for number, value in enumerate(window.elements()):
                yield "record", number, None, value
        elif begins == "{" and not lists:
            for earlier, value in records:
                yield "record", count, earlier, value
                count += 1
            records = [(key, window.value())]
        else:
            rest[key] = window.value()
    if lists:
        return  # what is beside the list describes it
    if not records:
        if not rest:
            window.require_end()
            raise DataError(f"{window.path} contains an empty JSON object; {_EXPECTED}.")
        yield "record", 0, None, rest
        return
    for number, (key, value) in enumerate([*records, *rest.items()], count):
        yield "record", number, key if isinstance(value, dict) else None, value


class _Window:
    """The part of a file needed to read the next value."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.at = 0  # current position in the text
        self.ended = False
        self.lines, self.columns = 0, 0  # lines before the text, and characters before it in its first line
        self.advice = RECREATE  # for text that is not valid JSON
        self._counted = 0, 0  # a position in the text, and the lines before it

    @contextmanager
    def located(self) -> Iterator[None]:
        """Convert errors in the text to DataError, with their place in the file."""
        try:
            yield
        except json.JSONDecodeError as error:
            line, column = self.place(error)
            raise DataError(f"{self.path}, line {line}, column {column}: {error.msg}. {self.advice}") from error
        except _RepeatedKeyError as error:
            raise DataError(f"{self.path}, line {self.line}: {_repeated(error)}") from error

    def place(self, error: json.JSONDecodeError) -> tuple[int, int]:
        """Line and column of an error."""
        return self.lines + error.lineno, error.colno + (self.columns if error.lineno == 1 else 0)

    def record_of_line(self, line: int) -> Any:
        """The value that begins in a line of JSON Lines; in place of a damaged one, a DataError without its place.

        Reading goes on with the line after the damaged one.
        """
        try:
            return self.value()
        except json.JSONDecodeError as error:
            ends_in, column = self.place(error)
            if ends_in > line:
                problem = FieldError(f"the record is incomplete at the end of its line. {self.advice}")
            else:
                problem = FieldError(f"it is not valid JSON: column {column}: {error.msg}. {self.advice}", "no JSON")
        except _RepeatedKeyError as error:
            problem = FieldError(_repeated(error))
        self.skip_line()
        return problem

    def skip_line(self) -> None:
        """Go to the end of the current line."""
        while (end := self.text.find("\n", self.at)) < 0 and not self.ended:
            self.at = len(self.text)
            self.read_more()
        self.at = len(self.text) if end < 0 else end

    @property
    def line(self) -> int:
        """Line of the current position."""
        at, lines = self._counted if self._counted[0] <= self.at else (0, 0)
        self._counted = self.at, lines + self.text.count("\n", at, self.at)
        return self.lines + self._counted[1] + 1

    def only_value(self) -> Any:
        """The value of the whole file."""
        self.next_character()
        value = self.value()
        self.require_end()
        return value

    def elements(self) -> Iterator[Any]:
        """Every value of the array that begins here."""
        self.at += 1
        closed = self.next_character() == "]"
        self.at += closed
        while not closed:
            yield self.value()
            closed = self.delimiter() == "]"
            self.next_character()

    def member_keys(self) -> Iterator[str]:
        """Every key of the object that begins here, with the current position at its value, which has to be read."""
        self.at += 1
        closed = self.next_character() == "}"
        self.at += closed
        while not closed:
            if self.next_character() != '"':
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.text, self.at)
            key = self.value()
            if self.next_character() != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", self.text, self.at)
            self.at += 1
            self.next_character()
            yield key
            closed = self.delimiter("}") == "}"

    def delimiter(self, closing: str = "]") -> str:
        """Consume the comma or the closing bracket at the current position."""
        found = self.next_character()
        if found not in (",", closing):
            raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
        self.at += 1
        return found

    def require_end(self) -> None:
        """Check that nothing follows."""
        if self.next_character():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def is_lines(self) -> bool:
        """Whether an object fills its line, and another one follows."""
        if "\n" not in self.text:
            self.read_more()
        line, _, following = self.text.partition("\n")
        try:
            _, end = _decode(line, self.at)
        except (ValueError, _RepeatedKeyError):
            return False
        return not line[end:].strip() and following.lstrip()[:1] == "{"

    def begins(self) -> str:
        """The first two characters of the value at the current position, without white space."""
        first = self.next_character()
        while first == "[":
            following = WHITESPACE.match(self.text, self.at + 1).end()
            if following < len(self.text) or self.ended:
                return first + self.text[following : following + 1]
            self.read_more()
        return first

    def value(self) -> Any:
        """The value at the current position; more of the file is read until it is complete."""
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _TAIL
                if self.ended or not goes_on:
                    raise
            else:
                # A number is complete only if a delimiter follows.
                following = self.text[end : end + 1]
                if self.ended or not isinstance(value, int | float) or (following and following in ",]} \t\r\n"):
                    self.at = end
                    return value
            self.read_more()

    def next_character(self) -> str:
        """The next character other than white space; empty at the end of the file."""
        while True:
            self.at = WHITESPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.read_more()

    def read_more(self) -> None:
        """Discard the text already parsed, and at least double the rest, so that long values need few attempts."""
        parsed, left = self.text[: self.at], self.text[self.at :]
        if len(left) > _LONGEST:
            raise DataError(
                f"{self.path}, line {self.line}: what begins here has more than {_LONGEST:,} characters. A quote or a "
                f"bracket that closes it is missing. {RECREATE}"
            )
        self.columns += len(parsed)
        if "\n" in parsed:
            self.lines += parsed.count("\n")
            self.columns = len(parsed) - parsed.rindex("\n") - 1
        new = self.file.read(max(_CHUNK, len(left)))
        self.text, self.at, self.ended, self._counted = left + new, 0, not new, (0, 0)
