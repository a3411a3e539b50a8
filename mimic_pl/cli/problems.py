"""Any exception -> an error of this project, with the words and the exit code that a person gets."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mimic_pl.cli.usage import short_message
from mimic_pl.errors import CheckpointError, ConfigError, DeviceMemoryError, MachineError, MimicError, UsageError

DEBUG = "--debug"
"""Anywhere on the command line: errors come with their traceback."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_KILLED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?[\d, ]+\) (is killed by signal: [\w ]+|exited unexpectedly)")
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d+_\d+.*No space left|Bus error", re.DOTALL)


_LOST = re.compile(r"gloo/|NCCL|ncclRemoteError|TCPStore|Connection (reset|closed) by peer")


class UnexpectedError(MimicError):
    """An exception that nobody expected, which is a mistake in a program."""


def debugging(args: Sequence[str]) -> bool:
    """Whether tracebacks are wanted."""
    return DEBUG in args or os.environ.get("MIMIC_PL_DEBUG") == "1"


def paragraph(error: MimicError) -> str:
    """What an error says; torch puts the traceback of a loader process before it."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") else text


def as_mimic_error(error: Exception) -> MimicError:
    """The error itself if it is one of this project's, or was raised on account of one; else what it comes to."""
    for cause in _causes(error):
        if isinstance(cause, MimicError):
            return cause
    if isinstance(error, ArgumentError):
        return UsageError(short_message(str(error)))
    if isinstance(error, MisconfigurationException):
        return ConfigError(str(error))
    if "Error(s) in loading state_dict" in str(error):
        return CheckpointError(f"The checkpoint does not fit the configured model. {error}")
    return _of_machine(error) or _unexpected(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # jsonargparse wraps what a class says in its constructor into an error of its own for each level of the tree.
    while error is not None:
        yield error
        error = error.__cause__


def _of_machine(error: Exception) -> MimicError | None:
    """What the machine refused, if that is what the exception says."""
    text = _last_line(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return DeviceMemoryError(
            f"There is no memory left: {text}. Do less at once (--data.batch_size, with more of "
            "--trainer.accumulate_grad_batches; --data.eval_batch_size; --data.entity_batch_size), compute with fewer "
            "bits (--trainer.precision bf16-mixed), or keep the index elsewhere (--model.index.storage host or disk)."
        )
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(str(error)):
        return MachineError(
            f"There is no room left in shared memory (/dev/shm), through which loader processes hand over their "
            f"batches: {text}. Give it more room (docker run --shm-size 8g), or use fewer processes or none "
            "(--data.num_workers 0)."
        )
    if isinstance(error, RuntimeError) and (found := _KILLED.search(str(error))):
        return MachineError(
            f"A loader process ended: {found.group()}. The system kills processes when memory runs short (dmesg "
            "tells): use fewer of them (--data.num_workers), or smaller batches. To see an error inside of one: "
            "--data.num_workers 0."
        )
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and _LOST.search(str(error))):
        return MachineError(
            "Another process of this run has ended, or cannot be reached. What it printed, or its machine's log, says "
            f"why; go on from the last checkpoint (--ckpt_path last). Here it is seen as: {text}."
        )
    if isinstance(error, OSError):
        return _of_system(error, text)
    return None


def _of_system(error: OSError, text: str) -> MachineError:
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    what = f"{where}: {error.strerror}" if where and error.strerror else text
    if error.errno in _FULL:
        return MachineError(
            f"The disk is full ({what}). Earlier checkpoints and stores are whole. Make room, or let the outputs go to "
            "another disk (--trainer.default_root_dir FOLDER)."
        )
    if error.errno in _DENIED:
        return MachineError(
            f"The system does not allow it ({what}). Ask for the permission, or choose another folder for the outputs "
            "(--trainer.default_root_dir FOLDER)."
        )
    return MachineError(f"The system refuses ({what}). {DEBUG} shows where.")


def _unexpected(error: Exception) -> UnexpectedError:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return UnexpectedError(
        f"unexpected {type(error).__name__}{where}: {_last_line(error)}. This is a mistake in a program, in mimic-pl "
        f"or in a class of your own. {DEBUG} on the command line shows the traceback, which a report of it needs."
    )


def _last_line(error: Exception) -> str:
    """What an exception says, without the traceback that torch puts before it in a loader process."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught "):
        return lines[-1].strip().rstrip(".")
    return " ".join(line.strip() for line in lines).rstrip(".")
