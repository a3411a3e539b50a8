"""One scan of the entities: counts those ranked ahead of the golds and collects the top ones."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.index import Block
from mimic_pl.ranking.selection import above, at_least, kth_largest, true_pairs
from mimic_pl.ranking.stored_states import pick
from mimic_pl.ranking.top import TopEntities, first_of_each_hash
from mimic_pl.units import Bounds, Matcher, States
from mimic_pl.units.base import at_pairs

OVERALL = "overall"

TOLERANCE = 2.0**-16
"""Score differences up to this fraction of a block's largest score are resolved in float64; float32 rounding errors are
dozens of times smaller."""

_SCORE_ALL = 0.3
"""Fraction of selected pairs above which scoring the whole block, in large products, is faster."""

_MANY = 4
"""Candidates per slot of the top lists above which the bounds of a block are sorted for a better threshold."""

_TIES = 4
"""Candidates per slot of the top lists above which entities with equal states are dropped before scoring."""

_SELECTED_ON_CPU = 128
"""Selected pairs scored at once on a CPU; their states, some 50 kB each, stay in the caches."""

_SELECTED_ON_DEVICE = 1 << 14
"""Selected pairs scored at once on other devices: enough for full utilization, below a gigabyte."""

_OF_ONE_MENTION = 48
"""Selected pairs of a mention above which they are scored as a block, whose products are larger."""

_MULTIPLE = 4
"""How many times as many pairs of one mention are scored at once: its states are not copied for each."""


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
        floor: Overall scores that the last entities of the lists will reach, ``[rows]``; None if unknown.

    Attributes:
        ahead: Number of entities ranked ahead of each row's gold, by score name, int64 ``[rows]``.
        top: Each row's top entities.
    """

    def __init__(self, query: Query, golds: dict[str, Golds], floor: Tensor | None = None) -> None:
        self.query = query
        self.floor = floor
        self.golds = golds
        self._any_gold = bool(golds[OVERALL].order.ge(0).any())
        self.ahead = {name: torch.zeros_like(query.rows) for name in golds}
        self.top = TopEntities(len(query.rows), query.top_k, query.matcher.score_names, query.rows.device)

    def add(self, block: Block, order: Tensor) -> None:
        """Count a block's entities ranked ahead of the golds and merge its top entities.

        Args:
            block: Entities.
            order: Their order numbers, int64 ``[entities]``.
        """
        require_finite_states(block, order)
        bounds = block_bounds(self.query.matcher, self.query.mentions, block.states, self.query.prune)
        margins = margins_of(bounds, order, self.query.rows)
        state_hashes = with_overall(block.state_hashes)

        undecided: dict[str, Tensor] = {}
        for name in self.counted:
            score = self.golds[name].score
            ahead = above(bounds[name].lower, score + margins[name])
            self.ahead[name] += ahead.view(torch.uint8).sum(dim=1, dtype=torch.int32)  # bool is summed as int64
            undecided[name] = at_least(bounds[name].upper, score - margins[name]).logical_and_(ahead.logical_not_())
        for name in self.counted:
            if bounds[name].exact:
                pairs = _Pairs(*true_pairs(undecided[name]))
                self._count_exactly(name, pairs, block, state_hashes, order)

        maybe_top, threshold = self._top_candidates(bounds[OVERALL], margins[OVERALL])
        inexact = tuple(name for name in self.counted if not bounds[name].exact)
        selected = maybe_top
        for name in inexact:
            selected = selected | undecided[name]
        pairs = _Pairs(*true_pairs(selected))
        top = pairs.of(maybe_top) & ~self._after_last(pairs, state_hashes[OVERALL], order)
        of_name = {name: pairs.of(undecided[name]) for name in inexact}

        # From bounds to tighter bounds to scores, each of the pairs that are left.
        steps = [self._tightened, self._scored] if self.query.prune else [self._scored]
        for step in steps:
            left = top.clone()
            for name in inexact:
                left |= of_name[name]
            kept = left.nonzero()[:, 0]
            # Scores of decided pairs are never worth it; bounds of a few are, since the others need not be copied.
            if step == self._scored or 2 * len(kept) < len(left):
                pairs, top = pairs.at(kept), top.index_select(0, kept)
                of_name = {name: chosen.index_select(0, kept) for name, chosen in of_name.items()}
            found = step(pairs, bounds, block)
            for name in inexact:
                gold = self.golds[name].score.index_select(0, pairs.rows)
                ahead = of_name[name] & (found[name].lower > gold + margins[name])
                self.ahead[name].index_add_(0, pairs.rows, ahead.long())
                of_name[name] = of_name[name] & ~ahead & (found[name].upper >= gold - margins[name])
            lower, upper = found[OVERALL].lower, found[OVERALL].upper
            threshold = torch.maximum(threshold, kth_largest(pairs.rows[top], lower[top], self.top.k, len(threshold)))
            top = top & (upper >= (threshold - margins[OVERALL]).index_select(0, pairs.rows))

        for name in inexact:
            self._count_exactly(name, pairs.at(of_name[name].nonzero()[:, 0]), block, state_hashes, order)
        self._merge(pairs.at(top.nonzero()[:, 0]), block, state_hashes[OVERALL], order)

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of the scores whose golds have ranks; none if there are no golds."""
        return self.query.ranked if self._any_gold else ()

    def _top_candidates(self, overall: Bounds, margin: Tensor) -> tuple[Tensor, Tensor]:
        """Which entities may belong to the top, bool ``[rows, entities]``, and their minimum scores, ``[rows]``."""
        threshold = self.top.last if self.floor is None else torch.maximum(self.top.last, self.floor)
        reaches = at_least(overall.upper, threshold - margin)
        known = self.floor is not None or overall.lower.shape[1] < self.top.k
        if not known and reaches.count_nonzero() > _MANY * self.top.order.numel():
            # The k-th largest lower bound excludes every entity below it.
            threshold = torch.maximum(threshold, overall.lower.topk(self.top.k, dim=1).values[:, -1])
            reaches = at_least(overall.upper, threshold - margin)
        return reaches, threshold

    def _after_last(self, pairs: _Pairs, state_hashes: Tensor, order: Tensor) -> Tensor:
        """Whether an entity comes after the last of a list that has the same state, and so the same score."""
        last_hash, last_order = self.top.state_hashes[:, -1], self.top.order[:, -1]
        rows, columns = pairs
        last = last_order.index_select(0, rows)
        same = state_hashes.index_select(0, columns) == last_hash.index_select(0, rows)
        return same & (order.index_select(0, columns) > last) & last.ge(0)

    def _tightened(self, pairs: _Pairs, bounds: dict[str, Bounds], block: Block) -> dict[str, Bounds]:
        return self.query.matcher.tighten(bounds, self.query.mentions, block.states, *pairs)

    def _scored(self, pairs: _Pairs, bounds: dict[str, Bounds], block: Block) -> dict[str, Bounds]:
        """Float32 scores of selected pairs, as bounds."""
        scores = self._scores(pairs, bounds, block)
        return {name: Bounds(score, score) for name, score in scores.items()}

    def _merge(self, pairs: _Pairs, block: Block, state_hashes: Tensor, order: Tensor) -> None:
        """Merge the candidates that may still belong to the top lists."""
        if len(pairs.rows) > _TIES * self.top.order.numel():
            # Many ties: of entities with equal states, only the first k can be in a list.
            columns = pairs.columns
            first = first_of_each_hash(pairs.rows, state_hashes[columns], order[columns], self.top.k)
            pairs = pairs.at(first.nonzero()[:, 0])
        rows, columns = pairs
        exact = self.query.exact(rows, pick(block.states, columns))
        self.top.merge(rows, order[columns], state_hashes[columns], exact)

    def _scores(self, pairs: _Pairs, bounds: dict[str, Bounds], block: Block) -> dict[str, Tensor]:
        """Float32 scores of selected pairs by name, ``[pairs]``."""
        rows, columns = pairs
        scores = {name: pairs.of(bounds[name].lower) for name in self.query.matcher.units}
        expensive = tuple(name for name in scores if not bounds[name].exact)
        if expensive and len(rows) > _SCORE_ALL * bounds[OVERALL].lower.numel():
            scored = self.query.matcher.score(self.query.mentions, block.states)
            return {name: score[rows, columns] for name, score in scored.items()}
        if expensive:
            parts = [self._expensive(expensive, rows[part], columns[part], block) for part in _parts(rows)]
            scores |= {name: torch.cat([part[name] for part in parts]) for name in expensive}
        return {OVERALL: self.query.matcher.overall(scores), **scores}

    def _expensive(self, names: tuple[str, ...], rows: Tensor, columns: Tensor, block: Block) -> dict[str, Tensor]:
        """Float32 scores of pairs by these units, ``[pairs]``: of one mention at once if they have the same."""
        matcher, mentions = self.query.matcher, self.query.mentions
        entities = pick(block.states, columns)
        if len(rows) < _OF_ONE_MENTION or rows[0] != rows[-1]:
            return matcher.pairs(pick(mentions, rows), entities, names)
        return matcher.row(pick(mentions, rows[:1]), entities, names)

    def _count_exactly(
        self, name: str, pairs: _Pairs, block: Block, state_hashes: dict[str, Tensor], order: Tensor
    ) -> None:
        """Count the pairs that rank ahead of the gold by float64 scores, which define the order."""
        rows, columns = pairs
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


def _parts(rows: Tensor) -> list[slice]:
    """Parts of pairs to score at once: all of a mention that has many, otherwise pairs of several mentions."""
    at_once = _SELECTED_ON_CPU if rows.device.type == "cpu" else _SELECTED_ON_DEVICE
    ends, start, parts = torch.bincount(rows).cumsum(0).tolist() if len(rows) else [], 0, []
    if rows.device.type != "cpu":
        ends = ends[-1:]  # launches cost more than products
    begin = 0
    for end in ends:
        if end - begin >= _OF_ONE_MENTION:
            if begin > start:
                parts.append(slice(start, begin))
            most = _MULTIPLE * at_once
            parts += [slice(first, min(first + most, end)) for first in range(begin, end, most)]
            start = end
        elif end - start >= at_once:
            parts.append(slice(start, end))
            start = end
        begin = end
    return parts if parts and start == begin else [*parts, slice(start, begin)]


class _Pairs(NamedTuple):
    """Pairs of a row and an entity of the block, both int64 ``[pairs]``; rows are ascending."""

    rows: Tensor
    columns: Tensor

    def at(self, kept: Tensor) -> _Pairs:
        """Some of the pairs, by their numbers in ascending order, int64 ``[n]``."""
        return _Pairs(self.rows.index_select(0, kept), self.columns.index_select(0, kept))

    def of(self, matrix: Tensor) -> Tensor:
        """The pairs' values, ``[pairs]`` of ``[rows, entities]``."""
        return at_pairs(matrix, *self)


def with_overall(state_hashes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a combined hash of all units' states, for the overall score, to the state hashes by unit."""
    overall: Tensor | None = None
    for state_hash in state_hashes.values():
        overall = state_hash if overall is None else overall * 0x5DEECE66D + state_hash
    assert overall is not None, "a model has units"
    return {OVERALL: overall, **state_hashes}


def block_bounds(matcher: Matcher, mentions: States, states: States, prune: bool) -> dict[str, Bounds]:
    """Bounds of the scores of a block by name, ``[mentions, entities]``; the scores themselves unless ``prune``.

    Args:
        matcher: Scores mentions against entities.
        mentions: States of mentions, prepared for bounds if ``prune``.
        states: States of entities.
        prune: Bound instead of scoring.
    """
    if prune:
        return matcher.bounds(mentions, states)
    return {name: Bounds(score, score) for name, score in matcher.score(mentions, states).items()}


def margins_of(bounds: dict[str, Bounds], order: Tensor, mentions: Tensor) -> dict[str, Tensor]:
    """Margins within which float32 scores do not decide an order, scalars by name.

    Args:
        bounds: Bounds of a block.
        order: Order numbers of its entities, int64 ``[entities]``, for the error.
        mentions: The mention of each row, int64 ``[rows]``, for the error.

    Raises:
        NonFiniteScoreError: A bound is NaN or infinite.
    """
    largest = {
        name: torch.stack([extreme for bound in _distinct(both) for extreme in bound.aminmax()]).abs().amax()
        for name, both in bounds.items()
    }
    if not torch.stack(list(largest.values())).isfinite().all():
        _raise_non_finite(bounds, order, mentions)
    margins = {name: value * TOLERANCE for name, value in largest.items()}
    return {**margins, OVERALL: torch.stack(list(margins.values())).amax()}


def _distinct(bounds: Bounds) -> tuple[Tensor, ...]:
    return (bounds.lower,) if bounds.exact else (bounds.lower, bounds.upper)


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


def _raise_non_finite(bounds: dict[str, Bounds], order: Tensor, mentions: Tensor) -> NoReturn:
    for name, both in bounds.items():
        for bound in _distinct(both):
            if torch.isfinite(bound).all():
                continue
            row, column = (~torch.isfinite(bound)).nonzero()[0].tolist()
            value, mention, entity = bound[row, column].item(), int(mentions[row]), int(order[column])
            raise NonFiniteScoreError(
                f"The {name!r} score of mention {mention} of this block with entity {entity} is {value}.",
                score=name,
                mention=mention,
                entity=entity,
                value=value,
            )
    raise AssertionError("some bound is not finite")
