"""Records on their way into a file, of which a killed writer loses at most the last few."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock
from typing_extensions import Self

from mimic_pl.errors import MachineError, StoreError
from mimic_pl.files import DISK_FULL, UNFINISHED_SUFFIX, acquire_lock, checksum_of, sync_folder

Records = Callable[[], Iterator[dict[str, Any]]]
"""Reads the records from the beginning; can be called several times."""

Render = Callable[[Records, Path], None]
"""Writes records to a file in another format."""


class PartFile:
    """A hidden file of JSON lines beside the target, which becomes the target at the end of the ``with`` block.

    Records are appended line by line, so that after a kill every complete line is still there. The target appears at
    once and complete; an older target stays as it is until then.

    Args:
        target: The file to be written.
        render: Writes the records in the format of the target; by default it has JSON Lines.
        job: What is written, in any form: after an exception, the records are kept for a writer of an equal job that
            resumes. Without a job, they are removed.
        resume: Keep the records of an unfinished writer of the same job; otherwise they are discarded.

    Attributes:
        target: The file to be written.
        written: Number of records so far, with those of the writers before.

    Raises:
        MachineError: The folder is not writable, or the disk is full.
        StoreError: Another process is writing the same target.
    """

    def __init__(
        self, target: Path, render: Render | None = None, job: str | None = None, resume: bool = False
    ) -> None:
        self.target = target
        self._render, self._kept = render, job is not None
        self._path = target.with_name(f".{target.name}.{checksum_of((job or '').encode())}.part")
        self._lock: FileLock | None = None
        try:
            self._lock = acquire_lock(target.parent, f".{target.name}.lock")
            self.written = _keep_complete_lines(self._path) if resume and self._path.is_file() else 0
            self._file = self._path.open("ab" if self.written else "wb")
        except StoreError as error:
            raise StoreError(f"Another process is writing {target}. Wait for it, or write to another file.") from error
        except OSError as error:
            self._release()
            raise self._error(error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record of plain JSON values."""
        try:
            line = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # an unpaired surrogate
            line = json.dumps(record).encode()
        self._checked(lambda: self._file.write(line + b"\n"))
        self.written += 1

    def flush(self) -> None:
        """Make what was written so far survive a power failure as well."""
        self._checked(self._flush)

    def records(self) -> Iterator[dict[str, Any]]:
        """What was written so far, with what the writers before have written."""
        self._checked(self._file.flush)
        with self._path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make the records the target; after an exception, keep them for a writer that resumes, if there is a job."""
        try:
            if error is None:
                self._checked(self._finish)
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # the disk is full
            raise self._error(error) from error
        finally:
            if not self._kept:
                self._path.unlink(missing_ok=True)
            self._release()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _finish(self) -> None:
        self._flush()
        finished = self._path
        if self._render is not None:
            finished = self.target.with_name(f".{self.target.name}{UNFINISHED_SUFFIX}")
            try:
                self._render(self.records, finished)
                with finished.open("rb+") as file:
                    os.fsync(file.fileno())
            except BaseException:
                finished.unlink(missing_ok=True)
                raise
        os.replace(finished, self.target)
        sync_folder(self.target.parent)
        for part in self.target.parent.glob(f".{glob.escape(self.target.name)}.????????.part"):
            part.unlink()

    def _checked(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> MachineError:
        reason = "the disk is full" if error.errno in DISK_FULL else (error.strerror or error)
        return MachineError(
            f"{self.target} cannot be written: {reason}. Free some space or check the folder"
            + ("; what was written so far is kept beside it, for a command that resumes." if self._kept else ".")
        )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _keep_complete_lines(path: Path) -> int:
    """Cut off what follows the last complete line; the number of lines that are left."""
    count = end = 0
    with path.open("rb+") as file:
        for line in file:
            try:
                complete = line.endswith(b"\n") and isinstance(json.loads(line), dict)
            except ValueError:  # after a power failure
                complete = False
            if not complete:
                break
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count
