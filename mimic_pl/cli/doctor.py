"""``mimic-pl doctor``: check a data folder before any training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.cli.choice import check_data_root
from mimic_pl.data import MELDataModule
from mimic_pl.errors import ConfigError

ABOUT = "Check a data folder before any training: files, counts, golds, pictures, leakage between splits."


def add_doctor_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of ``doctor``."""
    parser.add_argument(
        "-c", "--config", type=str | None, help="Take the 'data' section of this configuration; the rest is ignored."
    )
    parser.add_lightning_class_args(MELDataModule, "data", subclass_mode=True)


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
    config = parser.parse_args(list(_with_data_sections(args)))
    check_data_root(config)
    return int(run_doctor(parser.instantiate_classes(config).data))


def _with_data_sections(args: list[str]) -> Iterator[str]:
    """Replace each ``--config FILE`` by the file's ``data`` section, in place, so that later options still win."""
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name not in ("-c", "--config"):
            yield arg
            continue
        path = Path(value if equals else next(rest, ""))
        if not path.is_file():
            raise ConfigError(f"The configuration {str(path)!r} does not exist.")
        section = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("data")
        if section is None:
            raise ConfigError(f"The configuration {path} has no 'data' section to check.")
        yield f"--data={json.dumps(section)}"
