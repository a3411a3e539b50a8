"""Converts any exception to a MimicError, with a helpful message and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mimic_pl.cli.usage import short_message, unknown_option
from mimic_pl.encoders.loading_errors import missing_package, reason
from mimic_pl.errors import CheckpointError, ConfigError, DeviceMemoryError, MachineError, MimicError, UsageError
from mimic_pl.escaping import shortened
from mimic_pl.files import DISK_FULL

DEBUG = "--debug"
"""Anywhere on the command line: print tracebacks of errors."""

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_KILLED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?[\d, ]+\) (is killed by signal: [\w ]+|exited unexpectedly)")
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d+_\d+.*No space left|Bus error", re.DOTALL)
_CONNECTION_LOST = re.compile(r"gloo/|NCCL|ncclRemoteError|TCPStore|Connection (reset|closed) by peer")


class UnexpectedError(MimicError):
    """An unexpected exception, which indicates a bug."""


def debugging(args: Sequence[str]) -> bool:
    """Whether tracebacks are wanted."""
    return DEBUG in args or os.environ.get("MIMIC_PL_DEBUG") == "1"


def paragraph(error: MimicError) -> str:
    """An error's message, without the traceback that torch prepends in a loader process."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") else text


@contextmanager
def constructing(name: str) -> Iterator[None]:
    """Convert an exception of a constructor to a MimicError: to a ConfigError, unless the machine is at fault.

    Args:
        name: Name of the class.

    Raises:
        ConfigError: The constructor raised an exception; the message names the class.
        DeviceMemoryError: It ran out of memory.
        MachineError: The operating system reported an error other than a missing file.
    """
    try:
        yield
    except (MimicError, MisconfigurationException, ModuleNotFoundError):
        raise
    except Exception as error:
        problem = None if isinstance(error, FileNotFoundError) else _machine_error(error)
        if isinstance(problem, DeviceMemoryError):
            problem = DeviceMemoryError(f"Out of memory while {name} is built: {reason(error)} Choose a smaller model.")
        raise problem or ConfigError(
            f"{name} cannot be built from its arguments: {reason(error)} ({type(error).__name__} in {_where(error)}; "
            f"{DEBUG} shows the traceback)"
        ) from error


def as_mimic_error(error: Exception, args: Sequence[str] = ()) -> MimicError:
    """The MimicError that is the error itself or one of its causes; otherwise the corresponding one.

    Args:
        error: The exception.
        args: The command line, to say which configuration file is wrong.
    """
    for cause in _causes(error):
        if isinstance(cause, MimicError):
            return cause
        if isinstance(cause, MisconfigurationException):
            return ConfigError(str(cause))
        if isinstance(cause, ModuleNotFoundError) and not str(cause.name).startswith("mimic_pl"):
            return ConfigError(f"A package that the configuration needs is not installed: {missing_package(cause)}")
        if type(cause).__module__.startswith("wandb.errors"):
            return ConfigError(
                f"Weights & Biases cannot be used: {reason(cause)} Log in once (wandb login), or work offline "
                "(WANDB_MODE=offline in the environment)."
            )
        if parser := getattr(cause, "subcommand_parser", None):
            return UsageError(unknown_option(str(cause), parser, args))
    if isinstance(error, ArgumentError):
        return UsageError(short_message(str(error)))
    if "Error(s) in loading state_dict" in str(error):
        return CheckpointError(f"The checkpoint does not fit the configured model. {error}")
    return _machine_error(error) or _unexpected(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # jsonargparse wraps errors of constructors in one of its own for each level of the configuration.
    while error is not None:
        yield error
        error = error.__cause__


def _machine_error(error: Exception) -> MimicError | None:
    """The error of the machine that the exception indicates, if any."""
    text = _last_line(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return DeviceMemoryError(
            f"Out of memory: {text}. Use smaller batches (--data.batch_size, with a larger "
            "--trainer.accumulate_grad_batches; --data.eval_batch_size; --data.entity_batch_size), a lower precision "
            "(--trainer.precision bf16-mixed), or keep the index elsewhere (--model.index.storage host or disk)."
        )
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(str(error)):
        return MachineError(
            f"Shared memory (/dev/shm) is full; loader processes pass their batches through it: {text}. Increase it "
            "(docker run --shm-size 8g), or use fewer loader processes or none (--data.num_workers 0)."
        )
    if isinstance(error, RuntimeError) and (found := _KILLED.search(str(error))):
        return MachineError(
            f"A loader process died: {found.group()}. The system kills processes when memory runs out (see dmesg): use "
            "fewer of them (--data.num_workers), or smaller batches. To see an error inside a loader process: "
            "--data.num_workers 0."
        )
    if isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and _CONNECTION_LOST.search(str(error))
    ):
        return MachineError(
            "Another process of this run died, or cannot be reached. Its output, or its machine's log, shows why. Run "
            "the command again: indexing and linking go on where they were, and training resumes from its last "
            f"checkpoint with --ckpt_path last. Error in this process: {text}."
        )
    if isinstance(error, UnicodeError) and sys.getfilesystemencoding() != "utf-8":
        return UsageError(
            f"A name or a file is not {sys.getfilesystemencoding()}, the encoding of this environment: {text}. Set "
            "PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8."
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return ConfigError(f"A path is longer than the system allows: {shortened(str(error.filename), 200)!r}.")
    if isinstance(error, OSError):
        return _system_error(error, text)
    return None


def _system_error(error: OSError, text: str) -> MachineError:
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    what = f"{where}: {error.strerror}" if where and error.strerror else text
    if error.errno in DISK_FULL:
        return MachineError(
            f"The disk is full ({what}). Earlier checkpoints and stores are intact. Free some space, or write to "
            "another disk (--trainer.default_root_dir FOLDER)."
        )
    if error.errno in _DENIED:
        return MachineError(
            f"Access denied ({what}). Change the permissions, or choose another folder for the outputs "
            "(--trainer.default_root_dir FOLDER)."
        )
    return MachineError(f"The operating system reports an error ({what}). {DEBUG} shows where.")


def _unexpected(error: Exception) -> UnexpectedError:
    return UnexpectedError(
        f"unexpected {type(error).__name__} ({_where(error)}): {_last_line(error)}. This is a bug in mimic-pl or in a "
        f"custom class. {DEBUG} on the command line shows the traceback; please include it in a bug report."
    )


def _where(error: Exception) -> str:
    """Where an exception was raised: "theirs.py, line 8"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "unknown place"


def _last_line(error: Exception) -> str:
    """An exception's message on one line, without the traceback that torch prepends in a loader process."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught "):
        return lines[-1].strip().rstrip(".")
    return " ".join(line.strip() for line in lines).rstrip(".")
