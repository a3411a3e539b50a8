"""``mimic-pl benchmark``: how fast this machine ranks, trains and reads, in ratios."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

ABOUT = (
    "Measure ranking, training and reading side by side with the published order of operations and with the machine's "
    "own limit."
)


def add_benchmark_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of ``benchmark``."""
    # Imported here: it is no part of any other command.
    from mimic_pl.benchmark.settings import Settings

    parser.add_class_arguments(Settings, skip={"quick"})
    text = "Small sizes, which show that everything runs and measure nothing well."
    parser.add_argument("--quick", action="store_true", help=text)


def benchmark(args: list[str]) -> int:
    """Run the command.

    Args:
        args: The command line behind ``benchmark``.

    Returns:
        The exit status.
    """
    from mimic_pl.benchmark import Settings, run_benchmark

    parser = LightningArgumentParser(prog="mimic-pl benchmark", description=ABOUT, exit_on_error=False)
    add_benchmark_arguments(parser)
    run_benchmark(Settings(**parser.parse_args(args).as_dict()))
    return 0
