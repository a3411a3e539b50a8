"""Counting the pairs that ranking actually scores."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor

from mimic_pl.units import Matcher, States, Unit


class PairCount:
    """Number of pairs whose expensive scores were computed.

    Attributes:
        pairs: Pairs scored in float32 because bounds left them undecided: selected pairs or whole blocks.
        exact: Pairs scored in float64: near ties, golds and top entities.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.exact = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> PairCount:
        """Return itself: ranking copies the matcher, and all copies share the count."""
        return self


class _Counting(Matcher):
    """A matcher that counts the pairs that it scores."""

    count: PairCount

    def pairs(self, mentions: States, entities: States, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """See :meth:`Matcher.pairs`."""
        scores = super().pairs(mentions, entities, names)
        for name, score in scores.items():
            if self._unit(name).expensive and score.dtype.itemsize == 8:
                self.count.exact += len(score)
            elif self._unit(name).expensive:
                self.count.pairs += len(score)
        return scores

    def row(self, mention: States, entities: States, names: Iterable[str]) -> dict[str, Tensor]:
        """See :meth:`Matcher.row`."""
        scores = super().row(mention, entities, names)
        self.count.pairs += sum(len(score) for name, score in scores.items() if self._unit(name).expensive)
        return scores

    def score(self, mentions: States, entities: States) -> dict[str, Tensor]:
        """See :meth:`Matcher.score`."""
        scores = super().score(mentions, entities)
        self.count.pairs += sum(
            score.numel() for name, score in scores.items() if name in self.units and self._unit(name).expensive
        )
        return scores

    def _unit(self, name: str) -> Unit:
        return cast(Unit, self.units[name])


def counting(matcher: Matcher) -> tuple[Matcher, PairCount]:
    """Return a counting copy of a matcher, which shares its weights, and its count."""
    other = copy.copy(matcher)
    other.__class__ = type("Counting", (_Counting, type(matcher)), {})
    other.count = count = PairCount()  # type: ignore[assignment]
    return other, count
