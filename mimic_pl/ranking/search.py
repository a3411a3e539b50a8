"""One pass over the entity index: who stands before the golds, and who on top."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.index import Block, EntityIndex
from mimic_pl.ranking.states import pick
from mimic_pl.ranking.top import TopEntities, first_of_each_hash
from mimic_pl.units import Bounds, Matcher, States

OVERALL = "overall"

TOLERANCE = 2.0**-16
"""Differences up to this share of a block's largest score are settled in float64; rounding errors of float32 scores
are dozens of times smaller."""

_ENTITIES_AT_MOST = 4096
"""Entities in a block at most, since a block's states are decoded: 80 MB in float32 at published sizes."""

_MANY = 0.3
"""Shard of a block's pairs from which on it is faster to score all of them, in large products, than those chosen."""

_TIES = 4
"""Candidates for each place of the top lists from which on equals are sorted out before they are scored."""

_CHOSEN_ON_CPU = 128
"""Chosen pairs whose states, some 50 kB each, are copied at once on a CPU: what stays in its caches."""

_CHOSEN_ON_DEVICE = 1 << 14
"""Chosen pairs at once on another device: enough to fill it, below a gigabyte."""


class Search:
    """One pass over what a process holds of the knowledge base, for a block of mentions.

    It goes by rows of a mention and one of its golds, or none: as many as there are mentions, if none has several.

    The steps, in their order: :meth:`find_golds` and :meth:`look_over`, which a process does by itself, and after each
    what the processes tell each other: :meth:`share_golds` and :meth:`result`.

    Args:
        matcher: Scores mentions against entities.
        mentions: States of the mentions, float32.
        gold: Positions of each mention's golds, int64 ``[mentions, golds]``, padded with -1.
        index: The entities.
        ranked: Names of the scores to rank by.
        top_k: Entities to keep on top.
        prune: Bound before scoring.
    """

    def __init__(
        self,
        matcher: Matcher,
        mentions: States,
        gold: Tensor,
        index: EntityIndex,
        ranked: tuple[str, ...],
        top_k: int,
        prune: bool,
    ) -> None:
        self.matcher = matcher
        self.index = index
        self.ranked = ranked
        self.prune = prune
        if not gold.shape[1]:
            gold = gold.new_full((len(gold), 1), -1)
        known = gold.ge(0)
        known[:, 0] |= ~known.any(dim=1)
        self.gold = gold
        self.rows, self.columns = known.nonzero(as_tuple=True)  # mention, and which of its golds
        if len(self.rows) > len(gold):
            mentions = pick(mentions, self.rows)
        self.mentions = matcher.prepare(mentions) if prune else mentions
        self.exact = ExactScores(matcher, mentions)
        self.own = gold[self.rows, self.columns]
        self.in_kb = self.own.ge(0)
        self.top_k = min(top_k, len(index))

    def find_golds(self) -> None:
        """Score each row's gold, where this process holds it."""
        names = self.matcher.score_names
        self._gold_scores = torch.zeros((len(names), len(self.own)), device=self.own.device)
        self._gold_state_hashes = torch.zeros((len(names), len(self.own)), dtype=torch.int64, device=self.own.device)
        rows = (self.in_kb & self.index.holds(self.own)).nonzero()[:, 0]
        if not len(rows):
            return
        block = self.index.select(self.own[rows])
        _require_finite_states(block, self.own[rows], self.rows[rows])
        state_hashes, scores = _with_overall(block.state_hashes), self.exact(rows, block.states)
        for number, name in enumerate(names):
            self._gold_scores[number, rows] = scores[name]
            self._gold_state_hashes[number, rows] = state_hashes[name]

    def share_golds(self) -> None:
        """Learn of the golds that others hold: each is held by one process, and nothing is a sum's other terms."""
        scores = self.index.processes.sum(self._gold_scores)
        state_hashes = self.index.processes.sum(self._gold_state_hashes)
        # Without a gold nothing is counted: all scores lie behind +inf.
        scores = scores.masked_fill(~self.in_kb, torch.inf)
        self.golds = {
            name: _Gold(scores[number], self.own, state_hashes[number])
            for number, name in enumerate(self.matcher.score_names)
        }

    def look_over(self, pairs: int) -> None:
        """Go through the entities, so many pairs at a time."""
        self.ahead = {name: torch.zeros_like(self.own) for name in self.golds}
        self.top = TopEntities(len(self.own), self.top_k, self.matcher.score_names, self.own.device)
        size = max(1, pairs // len(self.rows))
        if self.index.device.type == "cpu":
            size = min(size, _ENTITIES_AT_MOST)
        for positions, block in self.index.blocks(size):
            self.look(block, positions)

    def look(self, block: Block, positions: Tensor) -> None:
        """Count a block's entities before the golds, and merge those on top."""
        _require_finite_states(block, positions)
        bounds = self._bounds(block)
        _require_finite(bounds, positions, self.rows)
        margins = _margins(bounds)
        expensive = tuple(name for name in self.matcher.units if not bounds[name].exact)
        state_hashes = _with_overall(block.state_hashes)

        open_pairs: dict[str, Tensor] = {}
        for name in self.ranked:
            score = self.golds[name].score[:, None]
            lower, upper = bounds[name]
            before = lower > score + margins[name]
            self.ahead[name] += before.sum(dim=1)
            open_pairs[name] = (upper >= score - margins[name]) & ~before

        on_top = self._reach_for_top(bounds[OVERALL], margins[OVERALL], state_hashes[OVERALL])
        asked = on_top
        for name in self.ranked:
            if bounds[name].exact:
                rows, columns = open_pairs[name].nonzero(as_tuple=True)
                self._settle(name, rows, columns, block, state_hashes, positions)
            else:
                asked = asked | open_pairs[name]
        rows, columns = asked.nonzero(as_tuple=True)
        scores = self._scores(rows, columns, bounds, expensive, block)
        for name in self.ranked:
            if bounds[name].exact:
                continue
            gold_score = self.golds[name].score[rows]
            of_name = open_pairs[name][rows, columns]
            before = of_name & (scores[name] > gold_score + margins[name])
            self.ahead[name].index_add_(0, rows, before.long())
            near = of_name & ~before & (scores[name] >= gold_score - margins[name])
            self._settle(name, rows[near], columns[near], block, state_hashes, positions)

        reach = on_top[rows, columns]
        rows, columns = rows[reach], columns[reach]
        self._merge(
            rows, columns, scores[OVERALL][reach], margins[OVERALL], block, state_hashes[OVERALL][columns], positions
        )

    def result(self) -> tuple[dict[str, Tensor], TopEntities]:
        """Ranks of all golds by score, int64 ``[mentions, golds]``, 0 where there is none; and the top lists."""
        ahead = self.index.processes.sum(torch.stack([self.ahead[name] for name in self.ranked]))
        ranks = torch.where(self.in_kb, ahead + 1, 0)
        gold_ranks = {
            name: torch.zeros_like(self.gold).index_put((self.rows, self.columns), ranks[number])
            for number, name in enumerate(self.ranked)
        }
        first = torch.searchsorted(self.rows, torch.arange(len(self.gold), device=self.rows.device))
        return gold_ranks, self.top.rows(first).joined(self.index.processes)

    def _bounds(self, block: Block) -> dict[str, Bounds]:
        if self.prune:
            return self.matcher.bounds(self.mentions, block.states)
        return {name: Bounds(score, score) for name, score in self.matcher.score(self.mentions, block.states).items()}

    def _reach_for_top(self, overall: Bounds, margin: Tensor, state_hashes: Tensor) -> Tensor:
        """Entities that may be among the top ones, bool ``[mentions, entities]``."""
        k = min(self.top.k, overall.lower.shape[1])
        self._threshold = self.top.last
        if k == self.top.k:
            # k entities whose lower bounds reach a score keep all below it out.
            self._threshold = torch.maximum(self._threshold, overall.lower.topk(k, dim=1).values[:, -1])
        reach = overall.upper >= (self._threshold - margin)[:, None]
        # An entity with the last one's state has the same score and comes later.
        return (
            reach & (state_hashes != self.top.last_state_hash[:, None])
            if self.top.positions[:, -1].ge(0).all()
            else reach
        )

    def _merge(
        self,
        rows: Tensor,
        columns: Tensor,
        overall: Tensor,
        margin: Tensor,
        block: Block,
        state_hashes: Tensor,
        positions: Tensor,
    ) -> None:
        """Merge those of these pairs into the lists that may belong there."""
        table = overall.new_full((len(self.in_kb), len(positions)), -torch.inf).index_put((rows, columns), overall)
        if table.shape[1] >= self.top.k:
            self._threshold = torch.maximum(self._threshold, table.topk(self.top.k, dim=1).values[:, -1])
        reach = overall >= (self._threshold - margin)[rows]
        rows, columns, state_hashes = rows[reach], columns[reach], state_hashes[reach]
        if len(rows) > _TIES * self.top.positions.numel():
            # Many ties: of equal states only the first have a place in the list.
            first = first_of_each_hash(rows, state_hashes, self.top.k)
            rows, columns, state_hashes = rows[first], columns[first], state_hashes[first]
        self.top.merge(rows, positions[columns], state_hashes, self.exact(rows, pick(block.states, columns)))

    def _scores(
        self, rows: Tensor, columns: Tensor, bounds: dict[str, Bounds], expensive: tuple[str, ...], block: Block
    ) -> dict[str, Tensor]:
        """Float32 scores of chosen pairs by name, ``[pairs]``."""
        scores = {name: bounds[name].lower[rows, columns] for name in self.matcher.units}
        if len(rows) > _MANY * bounds[OVERALL].lower.numel():
            scored = self.matcher.score(self.mentions, block.states)
            return {name: score[rows, columns] for name, score in scored.items()}
        if expensive:
            at_once = _CHOSEN_ON_CPU if rows.device.type == "cpu" else _CHOSEN_ON_DEVICE
            parts = [
                self.matcher.pairs(pick(self.mentions, rows[part]), pick(block.states, columns[part]), expensive)
                for part in torch.split(torch.arange(len(rows), device=rows.device), at_once)
            ]
            scores |= {name: torch.cat([part[name] for part in parts]) for name in expensive}
        return {OVERALL: self.matcher.combine(scores), **scores}

    def _settle(
        self, name: str, rows: Tensor, columns: Tensor, block: Block, state_hashes: dict[str, Tensor], positions: Tensor
    ) -> None:
        """Count those of these pairs that come before the gold, by the scores that define the order."""
        gold = self.golds[name]
        position = positions[columns]
        # The gold's state: a tie.
        same = state_hashes[name][columns] == gold.state_hash[rows]
        before = same & (position < gold.position[rows])
        self.ahead[name].index_add_(0, rows, before.long())
        rows, columns, position = rows[~same], columns[~same], position[~same]
        if not len(rows):
            return
        names = None if name == OVERALL else (name,)
        score, gold_score = self.exact(rows, pick(block.states, columns), names)[name], gold.score[rows]
        before = (score > gold_score) | ((score == gold_score) & (position < gold.position[rows]))
        self.ahead[name].index_add_(0, rows, before.long())


class _Gold(NamedTuple):
    """Each row's gold by one score, all ``[rows]``."""

    score: Tensor
    position: Tensor
    state_hash: Tensor


def _with_overall(state_hashes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The overall score's hashes as well: those of all units taken together."""
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


def _require_finite_states(block: Block, positions: Tensor, mentions: Tensor | None = None) -> None:
    if block.finite.all():
        return
    column = int((~block.finite).nonzero()[0, 0])
    mention = 0 if mentions is None else int(mentions[column])
    entity = int(positions[column])
    raise NonFiniteScoreError(
        f"What the units keep of entity {entity} is not finite.", OVERALL, mention, entity, float("nan")
    )


def _require_finite(bounds: dict[str, Bounds], positions: Tensor, mentions: Tensor) -> None:
    for name, bound in bounds.items():
        for block in {id(tensor): tensor for tensor in bound}.values():
            # One pass and one number to look at: a sum is finite unless a term is not (or all are near the largest
            # float).
            if torch.isfinite(block.sum()) or torch.isfinite(block).all():
                continue
            row, column = (~torch.isfinite(block)).nonzero()[0].tolist()
            value, mention, entity = block[row, column].item(), int(mentions[row]), int(positions[column])
            raise NonFiniteScoreError(
                f"The {name!r} score of mention {mention} of this block with entity {entity} is {value}.",
                score=name,
                mention=mention,
                entity=entity,
                value=value,
            )
