"""``mimic-pl benchmark``: speed of ranking, training and reading on this machine, as ratios."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mimic_pl.benchmark.settings import Settings


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    parser.add_class_arguments(Settings, skip={"quick"})
    text = "Use small sizes, to check that everything runs; the measurements are inaccurate."
    parser.add_argument("--quick", action="store_true", help=text)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    from mimic_pl.benchmark.run import run_benchmark

    run_benchmark(Settings(**parser.parse_args(args).as_dict()))
    return 0
