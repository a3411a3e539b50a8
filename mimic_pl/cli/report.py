"""``mimic-pl report``: a table of runs with plots, and a page of the worst mentions."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from jsonargparse import ArgumentParser

from mimic_pl.errors import ConfigError


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    parser.add_argument(
        "runs", nargs="*", type=str, help="Folders of tested runs; seeds of one experiment share a row."
    )
    parser.add_argument("--output", type=str, default="report", help="Folder for the report.")
    text = "Run to compare the others with (default: the first of each data set)."
    parser.add_argument("--baseline", type=str | None, default=None, help=text)
    parser.add_argument("--gates", action="store_true", help="Also draw histograms of the gates; loads the models.")
    text = "Draw this many test mentions that some runs link correctly and others do not, with images; reads the data."
    parser.add_argument("--disagreements", type=int | None, default=None, help=text)
    text = "Run whose worst mentions are shown in errors.html, with images and attention; loads its model."
    parser.add_argument("--errors", type=str | None, default=None, help=text)
    parser.add_argument("--worst", type=int, default=50, help="Number of worst mentions.")


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    from mimic_pl.files import acquire_lock
    from mimic_pl.report import open_finished, write_errors_page, write_report

    given = parser.parse_args(args)
    if not given.runs and given.errors is None:
        raise ConfigError(
            "report needs tested runs, for example: mimic-pl report runs/*/version_*; or a run whose worst mentions to "
            "show: mimic-pl report --errors lightning_logs/version_0"
        )
    runs = [open_finished(folder) for folder in given.runs]
    baseline = None if given.baseline is None else open_finished(given.baseline)
    shown = None if given.errors is None else open_finished(given.errors)
    with ExitStack() as resources:
        resources.callback(acquire_lock(Path(given.output), ".report.lock").release)
        written = write_report(runs, given.output, baseline, given.gates, given.disagreements) if runs else []
        if shown is not None:
            written.append(write_errors_page(shown, Path(given.output) / "errors.html", given.worst))
    print("Written: " + ", ".join(map(str, written)))
    return 0
