"""Units that look scores up in a table, to rank arbitrary scores."""

import torch

from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex
from mimic_pl.units import Bounds, Matcher, Unit


class TableUnit(Unit):
    """Scores from a table ``[mentions, entities]``; ``slack`` widens its bounds at random, tighter ones by half."""

    def __init__(self, dims, slack=None):
        super().__init__(dims)
        self.slack = slack
        self.expensive = slack is not None

    def mention(self, features):
        raise AssertionError("the tests build the states")

    entity = mention

    def score(self, mentions, entities):
        return entities["column"].index_select(1, mentions["row"]).T

    def pairs(self, mentions, entities):
        return entities["column"].gather(1, mentions["row"][:, None])[:, 0]

    def bounds(self, mentions, entities):
        if self.slack is None:
            return super().bounds(mentions, entities)
        return self._around(self.score(mentions, entities), self.slack)

    def tighten(self, mentions, entities, bounds, rows, columns):
        return self._around(self.score(mentions, entities)[rows, columns], self.slack / 2)

    @staticmethod
    def _around(score, slack):
        below, above = torch.rand(2, *score.shape, generator=torch.Generator().manual_seed(len(score)))
        return Bounds(score - slack * below, score + slack * above)


def table_matcher(slacks, matcher=Matcher):
    return matcher(
        FeatureDims(1, 1), {name: lambda dims, s=slack: TableUnit(dims, s) for name, slack in slacks.items()}
    )


def table_states(tables):
    """An index and mention states whose scores by unit are these tables, each ``[mentions, entities]``."""
    first = next(iter(tables.values()))
    index = MemoryIndex()
    add(index, {name: {"column": table.T.contiguous()} for name, table in tables.items()})
    return index, {name: {"row": torch.arange(len(first))} for name in tables}


def add(index, states, order=None):
    """Add entities whose ids are their order numbers."""
    count = len(next(iter(next(iter(states.values())).values())))
    order = torch.arange(len(index), len(index) + count) if order is None else order
    index.add([f"Q{number}" for number in order.tolist()], states, order)


def pad(golds):
    width = max(map(len, golds))
    return torch.tensor([g + [-1] * (width - len(g)) for g in golds], dtype=torch.int64).view(len(golds), width)
