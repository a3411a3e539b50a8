"""The commands that are no stage of the Trainer: one file each, listed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.cli.baselines import ABOUT as ABOUT_BASELINES
from mimic_pl.cli.baselines import add_baselines_arguments, baselines
from mimic_pl.cli.benchmark import ABOUT as ABOUT_BENCHMARK
from mimic_pl.cli.benchmark import add_benchmark_arguments, benchmark
from mimic_pl.cli.doctor import ABOUT as ABOUT_DOCTOR
from mimic_pl.cli.doctor import add_doctor_arguments, doctor
from mimic_pl.cli.report import ABOUT as ABOUT_REPORT
from mimic_pl.cli.report import add_report_arguments, report
from mimic_pl.cli.robustness import ABOUT as ABOUT_ROBUSTNESS
from mimic_pl.cli.robustness import add_robustness_arguments, robustness


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        help: One sentence for the list of commands.
        about: What its own help says first.
        add_arguments: Adds its options to a parser.
        run: Takes the command line behind the command's name and returns the exit status.
    """

    help: str
    about: str
    add_arguments: Callable[[LightningArgumentParser], None]
    run: Callable[[list[str]], int]


OWN_COMMANDS = {
    "doctor": Command("Check a data folder before any training.", ABOUT_DOCTOR, add_doctor_arguments, doctor),
    "baselines": Command(
        "Rank by names, BM25 and the untrained encoder.", ABOUT_BASELINES, add_baselines_arguments, baselines
    ),
    "benchmark": Command(
        "Measure how fast this machine ranks, trains and reads.", ABOUT_BENCHMARK, add_benchmark_arguments, benchmark
    ),
    "robustness": Command(
        "Evaluate a run on mentions made worse, grade by grade.", ABOUT_ROBUSTNESS, add_robustness_arguments, robustness
    ),
    "report": Command("Collect tested runs into a table with plots.", ABOUT_REPORT, add_report_arguments, report),
}
"""By name, in the order in which help lists them."""
