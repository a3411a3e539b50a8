"""``mimic-pl doctor``: check a data folder before any training."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.cli.choice import check_data_root
from mimic_pl.cli.sections import add_config_argument, add_processor_argument, with_sections
from mimic_pl.data.base import BaseDataModule
from mimic_pl.processor import Processor

ABOUT = "Check a data folder before any training: files, counts, golds, images, leakage between splits."


def add_doctor_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of ``doctor``."""
    add_config_argument(parser, "Take data and processor of this configuration; the rest is ignored.")
    parser.add_lightning_class_args(BaseDataModule, "data", subclass_mode=True)
    add_processor_argument(parser)


def doctor(args: list[str]) -> int:
    """Run the command.

    Args:
        args: The command line behind ``doctor``.

    Returns:
        The exit status: 0 unless there are errors.
    """
    # Imported here: it is no part of any other command.
    from mimic_pl.data.doctor import run_doctor

    parser = LightningArgumentParser(prog="mimic-pl doctor", description=ABOUT, exit_on_error=False)
    add_doctor_arguments(parser)
    config = parser.parse_args(list(with_sections(args, ("data", "processor"))))
    check_data_root(config)
    built = parser.instantiate_classes(config)
    built.data.processor = built.processor or Processor()
    return int(run_doctor(built.data))
