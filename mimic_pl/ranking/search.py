"""One search of the entity index, step by step: golds are scored, entities counted, results merged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.floor import floor
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.ranking.scan import Golds, Query, Scan, require_finite_states, with_overall
from mimic_pl.ranking.stored_states import pick
from mimic_pl.ranking.top import TopEntities
from mimic_pl.units import Matcher, States

_ENTITIES_AT_MOST = 4096
"""Entities in a block at most, since a block's states are decoded: 80 MB in float32 at published sizes."""


class LocalGolds(NamedTuple):
    """What a process knows of the golds: 0 for those that another one holds.

    Attributes:
        scores: By score and row, float32 ``[scores, rows]``.
        state_hashes: By score and row, int64 ``[scores, rows]``.
    """

    scores: Tensor
    state_hashes: Tensor


class Search:
    """A search of what a process holds of the knowledge base, for a block of mentions.

    It goes by rows of a mention and one of its golds, or none: as many as there are mentions, if none has several.

    A process does :meth:`score_golds` and :meth:`scan` by itself; after each, :meth:`share_golds` and :meth:`merge`
    are collective. Each step needs what the one before it returns.

    Args:
        matcher: Scores mentions against entities.
        mentions: States of the mentions, float32.
        gold: Order numbers of each mention's golds, int64 ``[mentions, golds]``, padded with -1.
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
        if not gold.shape[1]:
            gold = gold.new_full((len(gold), 1), -1)
        known = gold.ge(0)
        known[:, 0] |= ~known.any(dim=1)
        rows, self._columns = known.nonzero(as_tuple=True)  # mention, and which of its golds
        if len(rows) > len(gold):
            mentions = pick(mentions, rows)
        self.index = index
        self.gold = gold
        self._order = gold[rows, self._columns]
        self._in_kb = self._order.ge(0)
        self._query = Query(
            matcher,
            matcher.prepare(mentions) if prune else mentions,
            rows,
            ExactScores(matcher, mentions),
            ranked,
            min(top_k, len(index)),
            prune,
        )

    def score_golds(self) -> LocalGolds:
        """Score each row's gold, where this process holds it."""
        names, order = self._query.matcher.score_names, self._order
        gold_scores = torch.zeros((len(names), len(order)), device=order.device)
        gold_state_hashes = torch.zeros((len(names), len(order)), dtype=torch.int64, device=order.device)
        rows = (self._in_kb & self.index.holds(order)).nonzero()[:, 0]
        if len(rows):
            block = self.index.select(order[rows])
            require_finite_states(block, order[rows], self._query.rows[rows])
            state_hashes, scores = with_overall(block.state_hashes), self._query.exact(rows, block.states)
            for number, name in enumerate(names):
                gold_scores[number, rows] = scores[name]
                gold_state_hashes[number, rows] = state_hashes[name]
        return LocalGolds(gold_scores, gold_state_hashes)

    def share_golds(self, local: LocalGolds) -> dict[str, Golds]:
        """Each row's gold by score; collective.

        Each gold is held by one process, so that a sum over the processes is its value.
        """
        scores = self.index.processes.sum(local.scores)
        state_hashes = self.index.processes.sum(local.state_hashes)
        # Without a gold nothing is counted: all scores are below +inf.
        scores = scores.masked_fill(~self._in_kb, torch.inf)
        return {
            name: Golds(scores[number], self._order, state_hashes[number])
            for number, name in enumerate(self._query.matcher.score_names)
        }

    def scan(self, golds: dict[str, Golds], pairs: int) -> Scan:
        """Go through the entities that this process holds, so many pairs at a time."""
        query, size = self._query, block_size(self.index, pairs, len(self._query.rows))
        found = floor(query.matcher, query.mentions, self.index, query.top_k, size) if query.prune else None
        scan = Scan(query, golds, found)
        for order, block in self.index.blocks(size):
            scan.add(block, order)
        return scan

    def merge(self, scan: Scan) -> tuple[dict[str, Tensor], TopEntities]:
        """Ranks and top lists among the entities of all processes; collective.

        Returns:
            By score the ranks of all golds, int64 ``[mentions, golds]``, 0 where there is none; and the top lists.
        """
        rows, ranked = self._query.rows, self._query.ranked
        ahead = self.index.processes.sum(torch.stack([scan.ahead[name] for name in ranked]))
        ranks = torch.where(self._in_kb, ahead + 1, 0)
        gold_ranks = {
            name: torch.zeros_like(self.gold).index_put((rows, self._columns), ranks[number])
            for number, name in enumerate(ranked)
        }
        first = torch.searchsorted(rows, torch.arange(len(self.gold), device=rows.device))
        return gold_ranks, scan.top.rows(first).joined(self.index.processes)


def block_size(index: EntityIndex, pairs: int, rows: int) -> int:
    """Entities in a block of so many pairs with a number of rows."""
    size = max(1, pairs // max(1, rows))
    return min(size, _ENTITIES_AT_MOST) if index.device.type == "cpu" else size
