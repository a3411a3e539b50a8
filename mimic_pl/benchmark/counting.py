"""How many pairs ranking really scores, counted from outside."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mimic_pl.units import Matcher, States


class PairCount:
    """Pairs whose dear scores were computed one by one.

    Attributes:
        pairs: In float32, where bounds left them open.
        exact: In float64, where float32 could not decide, and of golds and top entities.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.exact = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> PairCount:
        """Ranking copies the matcher; all copies count together."""
        return self


class _Counting(Matcher):
    """A matcher that counts the pairs it is asked for."""

    count: PairCount

    def pairs(self, mentions: States, entities: States, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """See :meth:`Matcher.pairs`."""
        scores = super().pairs(mentions, entities, names)
        first = next(iter(scores.values()))
        if first.dtype.itemsize == 8:
            self.count.exact += len(first)
        else:
            self.count.pairs += len(first)
        return scores


def counting(matcher: Matcher) -> tuple[Matcher, PairCount]:
    """The same matcher, sharing its weights, but one that counts; and what it counts."""
    other = copy.copy(matcher)
    other.__class__ = type("Counting", (_Counting, type(matcher)), {})
    other.count = count = PairCount()  # type: ignore[assignment]
    return other, count
