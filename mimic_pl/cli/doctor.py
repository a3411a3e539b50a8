"""``mimic-pl doctor``: check a data folder before training."""

from __future__ import annotations

from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    from mimic_pl.cli.sections import add_config_argument, add_data_argument, add_processor_argument

    add_config_argument(parser, "Configuration from which data and processor are used; the rest is ignored.")
    add_data_argument(parser, complete)
    add_processor_argument(parser, complete)
    text = (
        "Print one JSON document: 'errors', and for each of 'data_sets' its 'findings' with subject, value, verdict "
        "(ok, note, warning or ERROR), advice, and where they apply count, file and place. The exit code is the same."
    )
    parser.add_argument("--json", action="store_true", help=text)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command; the exit status is 0 unless there are errors."""
    from mimic_pl.cli.config_checks import check_config
    from mimic_pl.cli.sections import with_sections
    from mimic_pl.data.doctor import run_doctor
    from mimic_pl.processor import Processor

    config = parser.parse_args(list(with_sections(args, ("data", "processor"))))
    check_config(config)
    built = parser.instantiate(config)
    built.data.processor = built.processor or Processor()
    return int(run_doctor(built.data, config.json))
