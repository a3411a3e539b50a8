"""The command line ``mimic-pl``; :mod:`mimic_pl.cli.program` lists its commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from mimic_pl.cli.help import quick_answer, unknown_command
from mimic_pl.errors import UsageError

__all__ = ["main"]


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
    answer = quick_answer(given)
    if answer is not None:
        print(answer)
        return
    problem = unknown_command(given)
    if problem is not None:
        print(f"error: {UsageError(problem)}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    # Imported here, since torch and Lightning take seconds to load, which help should not wait for.
    from mimic_pl.cli.app import run

    run(given)
