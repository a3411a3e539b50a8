"""One scan of the entities: how many stand before the golds, and which are on top."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.index import Block
from mimic_pl.ranking.stored_states import pick
from mimic_pl.ranking.top import TopEntities, first_of_each_hash
from mimic_pl.units import Bounds, Matcher, States

OVERALL = "overall"

TOLERANCE = 2.0**-16
"""Differences up to this share of a block's largest score are settled in float64; rounding errors of float32 scores
are dozens of times smaller."""

_MANY = 0.3
"""Share of a block's pairs from which on it is faster to score all of them, in large products, than those chosen."""

_TIES = 4
"""Candidates for each place of the top lists from which on equals are sorted out before they are scored."""

_CHOSEN_ON_CPU = 128
"""Chosen pairs whose states, some 50 kB each, are copied at once on a CPU: what stays in its caches."""

_CHOSEN_ON_DEVICE = 1 << 14
"""Chosen pairs at once on another device: enough to fill it, below a gigabyte."""


class Query(NamedTuple):
    """What is searched for.

    Attributes:
        matcher: Scores mentions against entities.
        mentions: States of each row's mention, prepared for bounds where pairs are bounded.
        rows: Each row's mention, int64 ``[rows]``.
        exact: Scores pairs of a row and an entity in float64.
        ranked: Names of the scores to rank by.
        top_k: Entities to keep on top.
        prune: Bound before scoring.
    """

    matcher: Matcher
    mentions: States
    rows: Tensor
    exact: ExactScores
    ranked: tuple[str, ...]
    top_k: int
    prune: bool


class Golds(NamedTuple):
    """Each row's gold by one score, all ``[rows]``."""

    score: Tensor
    order: Tensor
    state_hash: Tensor


class Scan:
    """Counts and top lists of the blocks seen so far, which may come in any order.

    Args:
        query: What is searched for.
        golds: Each row's gold by score.

    Attributes:
        ahead: By score, how many entities stand before each row's gold, int64 ``[rows]``.
        top: Each row's top entities.
    """

    def __init__(self, query: Query, golds: dict[str, Golds]) -> None:
        self.query = query
        self.golds = golds
        self.ahead = {name: torch.zeros_like(query.rows) for name in golds}
        self.top = TopEntities(len(query.rows), query.top_k, query.matcher.score_names, query.rows.device)

    def add(self, block: Block, order: Tensor) -> None:
        """Count a block's entities before the golds, and merge those on top.

        Args:
            block: The entities.
            order: Their order numbers, int64 ``[entities]``.
        """
        require_finite_states(block, order)
        bounds = self._bounds(block)
        _require_finite(bounds, order, self.query.rows)
        margins = _margins(bounds)
        expensive = tuple(name for name in self.query.matcher.units if not bounds[name].exact)
        state_hashes = with_overall(block.state_hashes)

        open_pairs: dict[str, Tensor] = {}
        for name in self.query.ranked:
            score = self.golds[name].score[:, None]
            lower, upper = bounds[name]
            before = lower > score + margins[name]
            self.ahead[name] += before.sum(dim=1)
            open_pairs[name] = (upper >= score - margins[name]) & ~before

        on_top, threshold = self._reach_for_top(bounds[OVERALL], margins[OVERALL], state_hashes[OVERALL], order)
        asked = on_top
        for name in self.query.ranked:
            if bounds[name].exact:
                rows, columns = open_pairs[name].nonzero(as_tuple=True)
                self._settle(name, rows, columns, block, state_hashes, order)
            else:
                asked = asked | open_pairs[name]
        rows, columns = asked.nonzero(as_tuple=True)
        scores = self._scores(rows, columns, bounds, expensive, block)
        for name in self.query.ranked:
            if bounds[name].exact:
                continue
            gold_score = self.golds[name].score[rows]
            of_name = open_pairs[name][rows, columns]
            before = of_name & (scores[name] > gold_score + margins[name])
            self.ahead[name].index_add_(0, rows, before.long())
            near = of_name & ~before & (scores[name] >= gold_score - margins[name])
            self._settle(name, rows[near], columns[near], block, state_hashes, order)

        reach = on_top[rows, columns]
        rows, columns = rows[reach], columns[reach]
        candidates = _Candidates(rows, columns, order[columns], state_hashes[OVERALL][columns], scores[OVERALL][reach])
        self._merge(candidates, threshold, margins[OVERALL], block)

    def _bounds(self, block: Block) -> dict[str, Bounds]:
        if self.query.prune:
            return self.query.matcher.bounds(self.query.mentions, block.states)
        scores = self.query.matcher.score(self.query.mentions, block.states)
        return {name: Bounds(score, score) for name, score in scores.items()}

    def _reach_for_top(
        self, overall: Bounds, margin: Tensor, state_hashes: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Entities that may be among the top ones, bool ``[rows, entities]``, and scores ``[rows]`` that they reach."""
        k = self.top.k
        threshold = self.top.last
        if overall.lower.shape[1] >= k:
            # k entities whose lower bounds reach a score keep all below it out.
            threshold = torch.maximum(threshold, overall.lower.topk(k, dim=1).values[:, -1])
        reach = overall.upper >= (threshold - margin)[:, None]
        # An entity with the state of a list's last one has the same score: its order number decides.
        last_hash, last_order = self.top.state_hashes[:, -1:], self.top.order[:, -1:]
        behind = (state_hashes == last_hash) & (order > last_order) & last_order.ge(0)
        return reach & ~behind, threshold

    def _merge(self, candidates: _Candidates, threshold: Tensor, margin: Tensor, block: Block) -> None:
        """Merge those of these pairs into the lists that may belong there."""
        rows, columns, overall = candidates.rows, candidates.columns, candidates.overall
        table = overall.new_full((len(threshold), len(block.finite)), -torch.inf).index_put((rows, columns), overall)
        if table.shape[1] >= self.top.k:
            threshold = torch.maximum(threshold, table.topk(self.top.k, dim=1).values[:, -1])
        rows, columns, order, state_hashes, _ = candidates.at(overall >= (threshold - margin)[rows])
        if len(rows) > _TIES * self.top.order.numel():
            # Many ties: of equal states only the first have a place in the list.
            first = first_of_each_hash(rows, state_hashes, order, self.top.k)
            rows, columns, order, state_hashes = rows[first], columns[first], order[first], state_hashes[first]
        self.top.merge(rows, order, state_hashes, self.query.exact(rows, pick(block.states, columns)))

    def _scores(
        self, rows: Tensor, columns: Tensor, bounds: dict[str, Bounds], expensive: tuple[str, ...], block: Block
    ) -> dict[str, Tensor]:
        """Float32 scores of chosen pairs by name, ``[pairs]``."""
        scores = {name: bounds[name].lower[rows, columns] for name in self.query.matcher.units}
        if len(rows) > _MANY * bounds[OVERALL].lower.numel():
            scored = self.query.matcher.score(self.query.mentions, block.states)
            return {name: score[rows, columns] for name, score in scored.items()}
        if expensive:
            at_once = _CHOSEN_ON_CPU if rows.device.type == "cpu" else _CHOSEN_ON_DEVICE
            parts = [
                self.query.matcher.pairs(
                    pick(self.query.mentions, rows[part]), pick(block.states, columns[part]), expensive
                )
                for part in torch.split(torch.arange(len(rows), device=rows.device), at_once)
            ]
            scores |= {name: torch.cat([part[name] for part in parts]) for name in expensive}
        return {OVERALL: self.query.matcher.combine(scores), **scores}

    def _settle(
        self, name: str, rows: Tensor, columns: Tensor, block: Block, state_hashes: dict[str, Tensor], order: Tensor
    ) -> None:
        """Count those of these pairs that come before the gold, by the scores that define the order."""
        gold = self.golds[name]
        earlier = order[columns] < gold.order[rows]
        # The gold's state: a tie.
        same = state_hashes[name][columns] == gold.state_hash[rows]
        self.ahead[name].index_add_(0, rows, (same & earlier).long())
        rows, columns, earlier = rows[~same], columns[~same], earlier[~same]
        if not len(rows):
            return
        names = None if name == OVERALL else (name,)
        score, gold_score = self.query.exact(rows, pick(block.states, columns), names)[name], gold.score[rows]
        before = (score > gold_score) | ((score == gold_score) & earlier)
        self.ahead[name].index_add_(0, rows, before.long())


class _Candidates(NamedTuple):
    """Pairs for the top lists, all ``[pairs]``: row, column of the block, and the entity's."""

    rows: Tensor
    columns: Tensor
    order: Tensor
    state_hashes: Tensor
    overall: Tensor

    def at(self, chosen: Tensor) -> _Candidates:
        """Some of them, bool ``[pairs]``."""
        return _Candidates(*(tensor[chosen] for tensor in self))


def with_overall(state_hashes: dict[str, Tensor]) -> dict[str, Tensor]:
    """State hashes by score: the overall score's as well: those of all units taken together."""
    overall: Tensor | None = None
    for state_hash in state_hashes.values():
        overall = state_hash if overall is None else overall * 0x5DEECE66D + state_hash
    assert overall is not None, "a model has units"
    return {OVERALL: overall, **state_hashes}


def _margins(bounds: dict[str, Bounds]) -> dict[str, Tensor]:
    """How close two float32 scores may be without their order being sure, a scalar by name."""
    scale = {
        name: torch.maximum(bound.lower.abs().amax(), bound.upper.abs().amax()) * TOLERANCE
        for name, bound in bounds.items()
    }
    return {**scale, OVERALL: torch.stack(list(scale.values())).amax()}


def require_finite_states(block: Block, order: Tensor, mentions: Tensor | None = None) -> None:
    """Check a block's states.

    Args:
        block: Entities.
        order: Their order numbers, int64 ``[n]``.
        mentions: For the error, the mentions that they are looked at for.

    Raises:
        NonFiniteScoreError: A number is NaN or infinite.
    """
    if block.finite.all():
        return
    column = int((~block.finite).nonzero()[0, 0])
    mention = 0 if mentions is None else int(mentions[column])
    entity = int(order[column])
    raise NonFiniteScoreError(f"The states of entity {entity} are not finite.", OVERALL, mention, entity, float("nan"))


def _require_finite(bounds: dict[str, Bounds], order: Tensor, mentions: Tensor) -> None:
    for name, bound in bounds.items():
        for block in {id(tensor): tensor for tensor in bound}.values():
            # One pass and one number to look at: a sum is finite unless a term is not (or all are near the largest
            # float).
            if torch.isfinite(block.sum()) or torch.isfinite(block).all():
                continue
            row, column = (~torch.isfinite(block)).nonzero()[0].tolist()
            value, mention, entity = block[row, column].item(), int(mentions[row]), int(order[column])
            raise NonFiniteScoreError(
                f"The {name!r} score of mention {mention} of this block with entity {entity} is {value}.",
                score=name,
                mention=mention,
                entity=entity,
                value=value,
            )
