"""Exact ranks and top-k over the whole knowledge base, in blocks: nothing of size mentions x entities is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.units import States

SMALLEST_BLOCK = 32
"""Rows at least in any product whose results are ordered: below, kernels round differently from row to row."""

PairScores = Callable[[States, States], dict[str, Tensor]]
"""States of mentions and of entities -> named scores, each ``[mentions, entities]``; ``overall`` is among them."""


class Ranking(NamedTuple):
    """Where the golds of a block of mentions stand among all entities, and who stands on top.

    Attributes:
        ranks: For ``overall`` and each unit, the 1-based rank of the best-ranked gold, int64 ``[mentions]``; 0 where
            the mention has no gold in the knowledge base.
        top_entities: Positions in the knowledge base of the top entities by overall score, best first, int64
            ``[mentions, k]``.
        top_scores: For ``overall`` and each unit, the scores of ``top_entities``, float32 ``[mentions, k]``.
    """

    ranks: dict[str, Tensor]
    top_entities: Tensor
    top_scores: dict[str, Tensor]


class Ranker:
    """Ranks the whole knowledge base for a block of mentions.

    All entities stand in one total order: score descending, then position in the knowledge base. The rank of a gold is
    its place in that order, so top-k lists and ranks agree, a rank never depends on the size of the blocks, and a
    constant scorer ranks the golds by their position, which gains it nothing.

    Ties are real: to VDLU all entities without a picture are one. But the last bits of a matrix product depend on its
    shape, which would order equals by chance. So every product, that for the golds too, has the same shape: blocks of
    one size, filled up where they end early, and never so small that a kernel treats rows by their place.

    Args:
        top_k: How many top entities are kept for each mention.
        pairs_per_block: Mention-entity pairs that are scored at once; the working set is proportional to it.
    """

    def __init__(self, top_k: int = 10, pairs_per_block: int = 32_768) -> None:
        self.top_k = top_k
        self.pairs_per_block = pairs_per_block

    @torch.no_grad()
    def __call__(self, score: PairScores, mentions: States, gold: Tensor, index: EntityIndex) -> Ranking:
        """Rank the golds and find the top entities.

        Args:
            score: Scores a block of mentions against a block of entities.
            mentions: States of the mentions.
            gold: Positions of each mention's golds in the knowledge base, int64 ``[mentions, golds]``, padded with -1;
                the best-ranked gold counts.
            index: All entities.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; the error carries the row of the mention in this block and
                the position of the entity.
        """
        size = self._block_size(len(gold), len(index))
        gold_scores = _gold_scores(score, mentions, gold, index, size)
        best = {name: _first_in_order(scores, gold) for name, scores in gold_scores.items()}
        ahead: dict[str, Tensor] = {}
        top = _TopEntities(min(self.top_k, len(index)))

        for start, stop, entities in index.blocks(size):
            scores = {name: block[:, : stop - start] for name, block in score(mentions, entities).items()}
            _require_finite(scores, start)
            position = torch.arange(start, stop, device=gold.device)
            for name, block in scores.items():
                gold_score, gold_position = best[name]
                before = (block > gold_score[:, None]) | (
                    (block == gold_score[:, None]) & (position < gold_position[:, None])
                )
                count = before.sum(dim=1)
                ahead[name] = ahead[name] + count if name in ahead else count
            top.update(position, scores)

        in_kb = gold.ge(0).any(dim=1)
        ranks = {name: torch.where(in_kb, count + 1, 0) for name, count in ahead.items()}
        return Ranking(ranks, top.positions, top.scores)

    def _block_size(self, num_mentions: int, num_entities: int) -> int:
        """Entities in a block: as many as the pairs allow, shared out so that little of the last is filling."""
        most = max(SMALLEST_BLOCK, self.pairs_per_block // num_mentions)
        blocks = -(-num_entities // most)
        return max(SMALLEST_BLOCK, -(-num_entities // blocks))


def _gold_scores(score: PairScores, mentions: States, gold: Tensor, index: EntityIndex, size: int) -> dict[str, Tensor]:
    """Scores of each mention's own golds, ``[mentions, golds]`` by name; -inf where there is none."""
    known = gold.ge(0)
    entities, column = torch.unique(gold[known], return_inverse=True)
    columns = torch.zeros_like(gold).masked_scatter(known, column)
    golds: dict[str, Tensor] = {}
    for start in range(0, max(1, len(entities)), size):
        block = entities[start : start + size]
        filled = torch.cat([block, block.new_zeros(size - len(block))])
        inside = known & columns.ge(start) & columns.lt(start + size)
        for name, scores in score(mentions, index.select(filled)).items():
            found = scores.gather(1, (columns - start).clamp(0, size - 1)).masked_fill(~inside, -torch.inf)
            golds[name] = torch.maximum(golds[name], found) if name in golds else found
    return golds


class _TopEntities:
    """The best entities of the blocks seen so far, in the total order."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.positions: Tensor
        self.scores: dict[str, Tensor] = {}

    def update(self, position: Tensor, scores: dict[str, Tensor]) -> None:
        """Merge a block, ``[mentions, block]``, whose positions come after all seen so far."""
        overall = scores["overall"]
        positions = position.expand(overall.shape[0], -1)
        if self.scores:
            positions = torch.cat([self.positions, positions], dim=1)
            scores = {name: torch.cat([self.scores[name], block], dim=1) for name, block in scores.items()}
            overall = scores["overall"]
        # Columns are in knowledge-base order except for the list in front, whose ties precede all of the block's:
        # a stable sort keeps the total order.
        order = overall.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.positions = positions.gather(1, order)
        self.scores = {name: block.gather(1, order) for name, block in scores.items()}


def _first_in_order(scores: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
    """Score and position of each mention's best-ranked gold, both ``[mentions]``."""
    if gold.shape[1] == 0:
        return scores.new_full((len(gold),), torch.inf), gold.new_zeros(len(gold))
    best = scores.max(dim=1).values
    unknown = torch.iinfo(torch.int64).max
    position = gold.masked_fill(gold.lt(0) | scores.ne(best[:, None]), unknown).min(dim=1).values
    return best, position


def _require_finite(scores: dict[str, Tensor], start: int) -> None:
    for name, block in scores.items():
        # One pass and one number to look at: a sum is finite unless a term is not (or all are near the largest float).
        if torch.isfinite(block.sum()) or torch.isfinite(block).all():
            continue
        row, column = (~torch.isfinite(block)).nonzero()[0].tolist()
        value = block[row, column].item()
        raise NonFiniteScoreError(
            f"The {name!r} score of mention {row} of this block with entity {start + column} is {value}.",
            score=name,
            mention=row,
            entity=start + column,
            value=value,
        )
