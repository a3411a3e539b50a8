"""Opens files, compressed files and pipes, and converts every failure to read them to a DataError with its place."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mimic_pl.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Suffixes of compressed files, with pyarrow's names of their codecs."""

RECREATE = "Unpack or write the file again."

Placed = tuple[str, int, str | None, Any]
"""A record and its place: what its number counts (``record`` or ``line``), the number, its key in an object of records,
and its content."""

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_CHUNK = 1 << 20
_PIPE_LIMIT = 1 << 27
"""Maximum bytes from a pipe; its records take about ten times as much memory."""

_PATIENCE = 10.0
"""Seconds without data from a pipe until a warning."""

_log = logging.getLogger(__name__)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a file, a compressed file or a pipe as text, with the encoding that its first bytes show.

    Raises:
        DataError: It does not exist, is empty, or cannot be read, here or while it is read.
    """
    with (
        as_data_errors(path),
        open_binary(path) as file,
        io.TextIOWrapper(file, _encoding(path, file), newline="") as text,
    ):
        yield text


def open_binary(path: Path) -> io.BufferedReader:
    """Open a regular file, decompressed, or a pipe.

    Raises:
        DataError: It is a folder or a device.
        OSError: It cannot be opened.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode):
        return io.BufferedReader(_Pipe(path))
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is a {'folder' if stat.S_ISDIR(mode) else 'device'}, not a file with records.")
    file = path.open("rb")
    if path.suffix.lower() not in COMPRESSIONS:
        return file
    import pyarrow

    stream = pyarrow.CompressedInputStream(file, COMPRESSIONS[path.suffix.lower()])
    return io.BufferedReader(stream)


@contextmanager
def as_data_errors(path: Path) -> Iterator[None]:
    """Convert all errors of reading a file to DataError, with their place."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        byte = f"the byte {error.object[error.start]:#04x}"
        raise DataError(f"{path}, {_place(path)}{byte} is not valid {_name(error)}. {RECREATE}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}. {RECREATE}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a data set.") from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path}: {error}.") from error


class _Pipe(io.RawIOBase):
    """A pipe: logs a warning if nothing arrives, and bounds the size, since a pipe may never end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        # Without O_NONBLOCK, opening a pipe that nobody writes to would block without a word.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Wait for data, and read it."""
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        if not ready.poll(1000 * _PATIENCE):
            _log.warning(f"Waiting for data from the pipe {self._path}: nothing was written for {_PATIENCE:g} s.")
            ready.poll()
        count = os.readv(self._descriptor, [buffer])
        self._size += count
        if self._size > _PIPE_LIMIT:
            raise DataError(
                f"The pipe {self._path} does not end: {self._size:,} bytes were read. Write its output to a file, and "
                "pass the file."
            )
        return count

    def close(self) -> None:
        """Close the descriptor."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _encoding(path: Path, file: io.BufferedReader) -> str:
    head = file.peek(4)[:4]
    if not head:
        raise DataError(f"{path} is empty.")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in head[:2]:
        raise DataError(
            f"{path} begins with NUL bytes: it is not text, or is UTF-16 without a byte order mark. Save it as UTF-8."
        )
    return encoding


def _place(path: Path) -> str:
    """Line and column of the first invalid character; a decoder only knows its place in a chunk."""
    if not path.is_file():
        return ""  # a pipe cannot be read again
    line, column = 1, 1
    with open_binary(path) as file:
        decoder = codecs.getincrementaldecoder(_encoding(path, file))()
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                text = error.object[: error.start].decode(error.encoding).lstrip("\ufeff")
                chunk = b""
            line += text.count("\n")
            column = len(text) - text.rfind("\n") if "\n" in text else column + len(text)
            if not chunk:
                return f"line {line}, column {column}: "


def _name(error: UnicodeDecodeError) -> str:
    return error.encoding.upper().replace("UTF8", "UTF-8")
