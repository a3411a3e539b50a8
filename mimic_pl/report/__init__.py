"""Reports on finished runs: a table, plots, significance tests, and a page of the worst mentions."""

from mimic_pl.evaluated_run import EvaluatedRun, Predictions, open_finished
from mimic_pl.report.errors_page import write_errors_page
from mimic_pl.report.experiments import Experiment, group_runs
from mimic_pl.report.significance import Comparison, paired_bootstrap
from mimic_pl.report.write import write_report

__all__ = [
    "Comparison",
    "EvaluatedRun",
    "Experiment",
    "Predictions",
    "group_runs",
    "open_finished",
    "paired_bootstrap",
    "write_errors_page",
    "write_report",
]
