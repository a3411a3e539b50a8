"""Reads JSON files, as a whole or value by value, with errors that name line and column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # what JSON counts as white space
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from mimic_pl.errors import DataError

_RECREATE = "Unpack or write the file again."
_CHUNK = 1 << 20
_decode = json.JSONDecoder().raw_decode


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is missing, or not valid UTF-8 or JSON; the message has line and column.
    """
    with _as_data_errors(path):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def stream_json(path: Path, title: str) -> Iterator[Any]:
    """Stream the values of a JSON array; only the part of the file needed for the next value is in memory.

    Args:
        path: The file.
        title: Title of the progress bar.

    Raises:
        DataError: As :func:`read_json`, but only after the values before the error; or the file is not an array.
    """
    with _as_data_errors(path), path.open(encoding="utf-8-sig") as file:
        window = _Window(file, title)
        try:
            yield from window.values(path)
        except json.JSONDecodeError as error:
            line, column = window.locate(error)
            raise DataError(f"{path}, line {line}, column {column}: {error.msg}. {_RECREATE}") from error
        finally:
            window.bar.close()


class _Window:
    """The part of a file needed to read the next value."""

    def __init__(self, file: IO[str], title: str) -> None:
        self.file = file
        size = Path(file.name).stat().st_size
        self.bar = tqdm(total=size, desc=title, unit="B", unit_scale=True, leave=False, delay=2)
        self.text = ""
        self.at = 0  # current position in the text
        self.ended = False
        self.lines, self.columns = 0, 0  # lines before the text, and characters before it in its first line

    def values(self, path: Path) -> Iterator[Any]:
        """Every value of the array."""
        if self.next_character() != "[":
            while not self.ended:
                self.read_more()
            whole = json.loads(self.text)
            raise DataError(
                f"{path} contains a JSON {type(whole).__name__}; expected a list of records. Wrap the records in [ ]."
            )
        self.at += 1
        closed = self.next_character() == "]"
        self.at += closed
        while not closed:
            yield self.value()
            delimiter = self.next_character()
            if delimiter not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
            closed = delimiter == "]"
            self.at += 1
            self.next_character()
        if self.next_character():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def value(self) -> Any:
        """The value at the current position; more of the file is read until it is complete."""
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except ValueError:
                if self.ended:
                    raise
            else:
                # A number is complete only if a delimiter follows.
                following = WHITESPACE.match(self.text, end).end()
                if self.ended or self.text[following : following + 1] in (",", "]"):
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
        self.columns += len(parsed)
        if "\n" in parsed:
            self.lines += parsed.count("\n")
            self.columns = len(parsed) - parsed.rindex("\n") - 1
        new = self.file.read(max(_CHUNK, len(left)))
        self.text, self.at, self.ended = left + new, 0, not new
        self.bar.update(self.file.buffer.tell() - self.bar.n)  # type: ignore[attr-defined]

    def locate(self, error: json.JSONDecodeError) -> tuple[int, int]:
        """Line and column in the file of an error in the text."""
        return self.lines + error.lineno, error.colno + (self.columns if error.lineno == 1 else 0)


@contextmanager
def _as_data_errors(path: Path) -> Iterator[None]:
    """Convert all errors of reading a JSON file to DataError, with their location."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {_invalid_byte(path)} is not valid UTF-8. {_RECREATE}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}. {_RECREATE}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a data set.") from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path}: {error}.") from error


def _invalid_byte(path: Path) -> str:
    """Line, column and value of the first invalid byte; the error of a stream is relative to a chunk."""
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        return f"line {line}, column {column}: the byte {error.object[error.start]:#04x}"
    return "which changed while it was read: a byte"
