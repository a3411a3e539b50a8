"""The command line ``mimic-pl``; :mod:`mimic_pl.cli.program` lists its commands."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from mimic_pl.cli.help import quick_answer, unknown_command, unusable_names
from mimic_pl.errors import MachineError, UsageError

__all__ = ["main"]

BROKEN_PIPE = 141
"""Exit code if the reader of the output is gone, as in ``mimic-pl ... | head -1``: that of SIGPIPE in a shell."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: The command line without the program's name; ``sys.argv`` by default.

    Raises:
        SystemExit: With the error's exit code, after printing one paragraph to stderr; preceded by the traceback with
            ``--debug`` anywhere on the command line, or ``MIMIC_PL_DEBUG=1`` in the environment.
    """
    given = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not closed, not a notebook's
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        _run(given)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as end:
        if not _is_broken_pipe(end):
            raise
        # The reader, such as head, has read enough. Nothing is flushed into the pipe at the interpreter's end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


def _run(given: Sequence[str]) -> None:
    answer = quick_answer(given)
    if answer is not None:
        print(answer)
        return
    problem = unknown_command(given) or unusable_names(given)
    if problem is not None:
        print(f"error: {UsageError(problem)}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    # Imported here, since torch and Lightning take seconds to load, which help should not wait for.
    try:
        from mimic_pl.cli.app import run
    except ImportError as error:
        if "--debug" in given:
            raise
        reason = f"A package cannot be loaded: {error}. Reinstall it (pip install --force-reinstall), or raise a limit"
        print(f"error: {MachineError(f'{reason} on memory (ulimit -v).')}", file=sys.stderr)
        sys.exit(MachineError.exit_code)

    run(list(given))


def _is_broken_pipe(end: BaseException) -> bool:
    """Whether stdout was closed: rich exits with 1 then."""
    return isinstance(end, BrokenPipeError) or isinstance(end.__context__, BrokenPipeError)
