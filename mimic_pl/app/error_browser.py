"""The errors of a test run, filtered."""

from __future__ import annotations

from typing import NamedTuple

from mimic_pl.evaluated_run import EvaluatedRun
from mimic_pl.metrics import GROUPS
from mimic_pl.report.loaded import LoadedRun
from mimic_pl.report.worst import Case, cases_of, wrongly_linked

AT_ONCE = 5
"""Errors that are shown at once."""


class ErrorFilter(NamedTuple):
    """Which errors to show; an empty value selects all.

    Attributes:
        right: Name of a unit that ranks the gold first by its score alone.
        wrong: Name of a unit that does not.
        group: Whether the gold was a gold in training: one of :data:`~mimic_pl.metrics.GROUPS`.
    """

    right: str = ""
    wrong: str = ""
    group: str = ""


class ErrorBrowser:
    """The wrongly linked mentions of a test run.

    Args:
        run: The run, with its checkpoint and its data; see :class:`~mimic_pl.report.loaded.LoadedRun`.
    """

    def __init__(self, run: EvaluatedRun) -> None:
        self.loaded = LoadedRun(run)
        self._wrong = wrongly_linked(self.loaded)
        self.units = [name for name in run.predictions.ranks if name != "overall"]
        groups = {self.loaded.seen(index) for index, _ in self._wrong}
        self.groups = GROUPS if groups & {True, False} else ()

    def find(self, chosen: ErrorFilter, start: int, count: int = AT_ONCE) -> tuple[list[Case], int]:
        """Errors, those with the worst-ranked golds first.

        Args:
            chosen: Which ones.
            start: How many of them to skip.
            count: Maximum number of those that are returned.

        Returns:
            The next ones, and the number of all of them.
        """
        wrong = [
            (index, record)
            for index, record in self._wrong
            if (not chosen.right or record["rank"][chosen.right] == 1)
            and (not chosen.wrong or record["rank"][chosen.wrong] != 1)
            and (not chosen.group or self.loaded.seen(index) is (chosen.group == GROUPS[0]))
        ]
        return cases_of(self.loaded, wrong, start, count), len(wrong)
