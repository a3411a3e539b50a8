"""Problems of a file's records: collected, counted by kind, and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from mimic_pl.errors import DataError

_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """What is wrong with some records of a file.

    Attributes:
        place: The first of them.
        message: What is wrong, and what to do.
        count: Number of them.
    """

    place: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        """Place and message as one sentence."""
        return f"{self.place}: {self.message}" + (f" (The same in {self.count - 1:,} more.)" if self.count > 1 else "")


class MalformedRecordsError(DataError):
    """Some records of a file are malformed; all of them are reported together.

    Args:
        path: The file.
        problems: One of each kind.
        records: The valid records, for callers that continue, such as ``mimic-pl doctor``.
    """

    def __init__(self, path: Path, problems: Sequence[Problem], records: Sequence[Any]) -> None:
        more = f"\n... and {len(problems) - _SHOWN} more problems." if len(problems) > _SHOWN else ""
        super().__init__("\n".join(f"{path}, {problem}" for problem in problems[:_SHOWN]) + more)
        self.path = path
        self.problems = problems
        self.records = records


class Problems:
    """Problems of a file's records: the first of each kind, and how often it occurs."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, Problem]] = {}

    def add(self, number: int, place: str, message: str, kind: str) -> None:
        """Add a problem of a record."""
        first, problem = self._found.get(kind, (number, Problem(place, message, 0)))
        self._found[kind] = first, replace(problem, count=problem.count + 1)

    def found(self) -> list[Problem]:
        """One of each kind, in the order of the records."""
        return [problem for _, problem in sorted(self._found.values(), key=itemgetter(0))]
