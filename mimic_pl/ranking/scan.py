"""One scan of the entities: counts those ranked ahead of the golds and collects the top ones."""

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
"""Score differences up to this fraction of a block's largest score are resolved in float64; float32 rounding errors are
dozens of times smaller."""

_SCORE_ALL = 0.3
"""Fraction of selected pairs above which scoring the whole block, in large products, is faster."""

_TIES = 4
"""Candidates per slot of the top lists above which entities with equal states are dropped before scoring."""

_SELECTED_ON_CPU = 128
"""Selected pairs scored at once on a CPU; their states, some 50 kB each, stay in the caches."""

_SELECTED_ON_DEVICE = 1 << 14
"""Selected pairs scored at once on other devices: enough for full utilization, below a gigabyte."""


class Query(NamedTuple):
    """The query of a scan. Each row is a mention with one of its golds, if any.

    Attributes:
        matcher: Scores mentions against entities.
        mentions: States of each row's mention, prepared for bounds if ``prune``.
        rows: Each row's mention, int64 ``[rows]``.
        exact: Scores pairs of a row and an entity in float64.
        ranked: Names of the scores to rank by.
        top_k: Number of top entities to keep.
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
    """Each row's gold: its value of one score, order number and state hash, all ``[rows]``."""

    score: Tensor
    order: Tensor
    state_hash: Tensor


class Scan:
    """Counts and top lists over the blocks seen so far; blocks may come in any order.

    Args:
        query: Mentions to rank entities for, and how.
        golds: Each row's gold by score name.

    Attributes:
        ahead: Number of entities ranked ahead of each row's gold, by score name, int64 ``[rows]``.
        top: Each row's top entities.
    """

    def __init__(self, query: Query, golds: dict[str, Golds]) -> None:
        self.query = query
        self.golds = golds
        self.ahead = {name: torch.zeros_like(query.rows) for name in golds}
        self.top = TopEntities(len(query.rows), query.top_k, query.matcher.score_names, query.rows.device)

    def add(self, block: Block, order: Tensor) -> None:
        """Count a block's entities ranked ahead of the golds and merge its top entities.

        Args:
            block: Entities.
            order: Their order numbers, int64 ``[entities]``.
        """
        require_finite_states(block, order)
        bounds = self._bounds(block)
        _require_finite(bounds, order, self.query.rows)
        margins = _margins(bounds)
        expensive = tuple(name for name in self.query.matcher.units if not bounds[name].exact)
        state_hashes = with_overall(block.state_hashes)

        undecided: dict[str, Tensor] = {}
        for name in self.query.ranked:
            score = self.golds[name].score[:, None]
            lower, upper = bounds[name]
            ahead = lower > score + margins[name]
            self.ahead[name] += ahead.sum(dim=1)
            undecided[name] = (upper >= score - margins[name]) & ~ahead

        maybe_top, threshold = self._top_candidates(bounds[OVERALL], margins[OVERALL], state_hashes[OVERALL], order)
        selected = maybe_top
        for name in self.query.ranked:
            if bounds[name].exact:
                rows, columns = undecided[name].nonzero(as_tuple=True)
                self._count_exactly(name, rows, columns, block, state_hashes, order)
            else:
                selected = selected | undecided[name]
        rows, columns = selected.nonzero(as_tuple=True)
        scores = self._scores(rows, columns, bounds, expensive, block)
        for name in self.query.ranked:
            if bounds[name].exact:
                continue
            gold_score = self.golds[name].score[rows]
            of_name = undecided[name][rows, columns]
            ahead = of_name & (scores[name] > gold_score + margins[name])
            self.ahead[name].index_add_(0, rows, ahead.long())
            near = of_name & ~ahead & (scores[name] >= gold_score - margins[name])
            self._count_exactly(name, rows[near], columns[near], block, state_hashes, order)

        top = maybe_top[rows, columns]
        rows, columns = rows[top], columns[top]
        candidates = _Candidates(rows, columns, order[columns], state_hashes[OVERALL][columns], scores[OVERALL][top])
        self._merge(candidates, threshold, margins[OVERALL], block)

    def _bounds(self, block: Block) -> dict[str, Bounds]:
        if self.query.prune:
            return self.query.matcher.bounds(self.query.mentions, block.states)
        scores = self.query.matcher.score(self.query.mentions, block.states)
        return {name: Bounds(score, score) for name, score in scores.items()}

    def _top_candidates(
        self, overall: Bounds, margin: Tensor, state_hashes: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which entities may belong to the top, bool ``[rows, entities]``, and their minimum scores, ``[rows]``."""
        k = self.top.k
        threshold = self.top.last
        if overall.lower.shape[1] >= k:
            # The k-th largest lower bound excludes every entity below it.
            threshold = torch.maximum(threshold, overall.lower.topk(k, dim=1).values[:, -1])
        reaches = overall.upper >= (threshold - margin)[:, None]
        # An entity with the same state as the last in a list has the same score, so the order number decides.
        last_hash, last_order = self.top.state_hashes[:, -1:], self.top.order[:, -1:]
        after_last = (state_hashes == last_hash) & (order > last_order) & last_order.ge(0)
        return reaches & ~after_last, threshold

    def _merge(self, candidates: _Candidates, threshold: Tensor, margin: Tensor, block: Block) -> None:
        """Merge the candidates that may still belong to the top lists."""
        rows, columns, overall = candidates.rows, candidates.columns, candidates.overall
        table = overall.new_full((len(threshold), len(block.finite)), -torch.inf).index_put((rows, columns), overall)
        if table.shape[1] >= self.top.k:
            threshold = torch.maximum(threshold, table.topk(self.top.k, dim=1).values[:, -1])
        rows, columns, order, state_hashes, _ = candidates.at(overall >= (threshold - margin)[rows])
        if len(rows) > _TIES * self.top.order.numel():
            # Many ties: of entities with equal states, only the first k can be in a list.
            first = first_of_each_hash(rows, state_hashes, order, self.top.k)
            rows, columns, order, state_hashes = rows[first], columns[first], order[first], state_hashes[first]
        self.top.merge(rows, order, state_hashes, self.query.exact(rows, pick(block.states, columns)))

    def _scores(
        self, rows: Tensor, columns: Tensor, bounds: dict[str, Bounds], expensive: tuple[str, ...], block: Block
    ) -> dict[str, Tensor]:
        """Float32 scores of selected pairs by name, ``[pairs]``."""
        scores = {name: bounds[name].lower[rows, columns] for name in self.query.matcher.units}
        if len(rows) > _SCORE_ALL * bounds[OVERALL].lower.numel():
            scored = self.query.matcher.score(self.query.mentions, block.states)
            return {name: score[rows, columns] for name, score in scored.items()}
        if expensive:
            at_once = _SELECTED_ON_CPU if rows.device.type == "cpu" else _SELECTED_ON_DEVICE
            parts = [
                self.query.matcher.pairs(
                    pick(self.query.mentions, rows[part]), pick(block.states, columns[part]), expensive
                )
                for part in torch.split(torch.arange(len(rows), device=rows.device), at_once)
            ]
            scores |= {name: torch.cat([part[name] for part in parts]) for name in expensive}
        return {OVERALL: self.query.matcher.combine(scores), **scores}

    def _count_exactly(
        self, name: str, rows: Tensor, columns: Tensor, block: Block, state_hashes: dict[str, Tensor], order: Tensor
    ) -> None:
        """Count the pairs that rank ahead of the gold by float64 scores, which define the order."""
        gold = self.golds[name]
        earlier = order[columns] < gold.order[rows]
        # The same state as the gold is a tie.
        same = state_hashes[name][columns] == gold.state_hash[rows]
        self.ahead[name].index_add_(0, rows, (same & earlier).long())
        rows, columns, earlier = rows[~same], columns[~same], earlier[~same]
        if not len(rows):
            return
        names = None if name == OVERALL else (name,)
        score, gold_score = self.query.exact(rows, pick(block.states, columns), names)[name], gold.score[rows]
        ahead = (score > gold_score) | ((score == gold_score) & earlier)
        self.ahead[name].index_add_(0, rows, ahead.long())


class _Candidates(NamedTuple):
    """Candidate pairs for the top lists, all ``[pairs]``; ``columns`` are those of the block."""

    rows: Tensor
    columns: Tensor
    order: Tensor
    state_hashes: Tensor
    overall: Tensor

    def at(self, chosen: Tensor) -> _Candidates:
        """Select candidates, bool ``[pairs]``."""
        return _Candidates(*(tensor[chosen] for tensor in self))


def with_overall(state_hashes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a combined hash of all units' states, for the overall score, to the state hashes by unit."""
    overall: Tensor | None = None
    for state_hash in state_hashes.values():
        overall = state_hash if overall is None else overall * 0x5DEECE66D + state_hash
    assert overall is not None, "a model has units"
    return {OVERALL: overall, **state_hashes}


def _margins(bounds: dict[str, Bounds]) -> dict[str, Tensor]:
    """Margins within which float32 scores do not decide an order, scalars by name."""
    scale = {
        name: torch.maximum(bound.lower.abs().amax(), bound.upper.abs().amax()) * TOLERANCE
        for name, bound in bounds.items()
    }
    return {**scale, OVERALL: torch.stack(list(scale.values())).amax()}


def require_finite_states(block: Block, order: Tensor, mentions: Tensor | None = None) -> None:
    """Check that a block's states are finite.

    Args:
        block: Entities.
        order: Their order numbers, int64 ``[n]``.
        mentions: The mention that each is scored for, int64 ``[n]``, for the error.

    Raises:
        NonFiniteScoreError: A value is NaN or infinite.
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
            # A single pass: the sum is finite unless a term is not (or terms are near the largest float).
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
