"""JSON files, read whole or value by value, with errors that say where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # what JSON counts as white space
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from mimic_pl.errors import DataError

_AGAIN = "Unpack or write the file again."
_CHUNK = 1 << 20
_decode = json.JSONDecoder().raw_decode


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is missing, no UTF-8, or no JSON; the message has line and column.
    """
    with _explained(path):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def stream_json(path: Path, title: str) -> Iterator[Any]:
    """The values of a JSON array one after another; no more of the file is held than a value needs.

    Args:
        path: The file.
        title: What the progress bar says.

    Raises:
        DataError: As :func:`read_json`, but only when the values before have been read; or the file holds no array.
    """
    with _explained(path), path.open(encoding="utf-8-sig") as file:
        window = _Window(file, title)
        try:
            yield from window.values(path)
        except json.JSONDecodeError as error:
            line, column = window.place(error)
            raise DataError(f"{path}, line {line}, column {column}: {error.msg}. {_AGAIN}") from error
        finally:
            window.bar.close()


class _Window:
    """The part of a file that is being read: as much of it as the next value needs."""

    def __init__(self, file: IO[str], title: str) -> None:
        self.file = file
        size = Path(file.name).stat().st_size
        self.bar = tqdm(total=size, desc=title, unit="B", unit_scale=True, leave=False, delay=2)
        self.text = ""
        self.at = 0  # how far the text is read
        self.ended = False
        self.lines, self.columns = 0, 0  # of the file before the text: lines, and characters of the last one

    def values(self, path: Path) -> Iterator[Any]:
        """Every value of the array that the file should be."""
        if self.character() != "[":
            while not self.ended:
                self.more()
            whole = json.loads(self.text)
            raise DataError(
                f"{path} holds a JSON {type(whole).__name__} where a list of records is due. Wrap the records in [ ]."
            )
        self.at += 1
        closed = self.character() == "]"
        self.at += closed
        while not closed:
            yield self.value()
            delimiter = self.character()
            if delimiter not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
            closed = delimiter == "]"
            self.at += 1
            self.character()
        if self.character():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def value(self) -> Any:
        """The value that begins here; more of the file is read while it may be cut off."""
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except ValueError:
                if self.ended:
                    raise
            else:
                # Only what follows tells that a number is complete.
                following = WHITESPACE.match(self.text, end).end()
                if self.ended or self.text[following : following + 1] in (",", "]"):
                    self.at = end
                    return value
            self.more()

    def character(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            self.at = WHITESPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def more(self) -> None:
        """Let go of what is read, and read at least as much as is left: a long value is not tried too often."""
        gone, left = self.text[: self.at], self.text[self.at :]
        self.columns += len(gone)
        if "\n" in gone:
            self.lines += gone.count("\n")
            self.columns = len(gone) - gone.rindex("\n") - 1
        new = self.file.read(max(_CHUNK, len(left)))
        self.text, self.at, self.ended = left + new, 0, not new
        self.bar.update(self.file.buffer.tell() - self.bar.n)  # type: ignore[attr-defined]

    def place(self, error: json.JSONDecodeError) -> tuple[int, int]:
        """Line and column in the file of an error in the text."""
        return self.lines + error.lineno, error.colno + (self.columns if error.lineno == 1 else 0)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What can be wrong with a JSON file becomes an error that says where."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {_no_utf8(path)} is no UTF-8. {_AGAIN}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}. {_AGAIN}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a data set.") from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path}: {error}.") from error


def _no_utf8(path: Path) -> str:
    """Line, column and value of the first byte that is no UTF-8; a stream's own error knows only its piece."""
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        return f"line {line}, column {column}: the byte {error.object[error.start]:#04x}"
    return "which changed while it was read: a byte"
