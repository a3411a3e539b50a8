"""``mimic-pl benchmark``: speed of ranking, training and reading on this machine, as ratios."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mimic_pl.benchmark.settings import Settings
from mimic_pl.cli.program import COMMANDS


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options.

    Args:
        parser: The parser.
        complete: Ignored.
    """
    parser.add_class_arguments(Settings, skip={"quick"})
    text = "Use small sizes, to check that everything runs; the measurements are inaccurate."
    parser.add_argument("--quick", action="store_true", help=text)


def run(args: list[str]) -> int:
    """Run the command.

    Args:
        args: The command line after ``benchmark``.

    Returns:
        The exit status.
    """
    from mimic_pl.benchmark.run import run_benchmark

    parser = ArgumentParser(prog="mimic-pl benchmark", description=COMMANDS["benchmark"].about, exit_on_error=False)
    add_arguments(parser, complete=True)
    run_benchmark(Settings(**parser.parse_args(args).as_dict()))
    return 0
