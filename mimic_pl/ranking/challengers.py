"""Which entities might beat a score, by bounds alone: a proof that a candidate is the first, without ranking."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.ranking.engine import full_precision, in_float32, pairs_that_fit
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.ranking.scan import OVERALL, block_bounds, margins_of, require_finite_states
from mimic_pl.ranking.search import block_size
from mimic_pl.ranking.selection import at_least, true_pairs
from mimic_pl.units import Matcher, States


class Challengers(NamedTuple):
    """Pairs of a mention and an entity whose overall score may reach the mention's score.

    Attributes:
        rows: Mentions, int64 ``[pairs]``.
        order: Order numbers of the entities, int64 ``[pairs]``.
    """

    rows: Tensor
    order: Tensor


@torch.no_grad()
def challengers(
    matcher: Matcher, mentions: States, index: EntityIndex, scores: Tensor, pairs_per_block: int | None = None
) -> Challengers:
    """Find the entities that bounds do not exclude from reaching a score; no attention is computed.

    If none but the owners of the scores are among them, no entity of the index has a higher score, nor an equal one.

    Args:
        matcher: Scores mentions against entities.
        mentions: States of the mentions, float32.
        index: The entities.
        scores: Overall score of each mention to be reached, ``[mentions]``.
        pairs_per_block: Pairs that are bounded at once; by default as many as :class:`Ranker` takes.

    Raises:
        NonFiniteScoreError: A bound is NaN or infinite.
    """
    matcher = in_float32(matcher)
    rows, order = [], []
    mention_rows = torch.arange(len(scores), device=scores.device)
    with full_precision(index.device):
        prepared = matcher.prepare(mentions) if matcher.monotone else mentions
        for numbers, block in index.blocks(
            block_size(index, pairs_per_block or pairs_that_fit(index.device), len(scores))
        ):
            require_finite_states(block, numbers)
            bounds = block_bounds(matcher, prepared, block.states, matcher.monotone)
            least = scores - margins_of(bounds, numbers, mention_rows)[OVERALL]
            reaching, columns = true_pairs(at_least(bounds[OVERALL].upper, least))
            if matcher.monotone:
                tighter = matcher.tighten(bounds, prepared, block.states, reaching, columns)
                kept = tighter[OVERALL].upper >= least[reaching]
                reaching, columns = reaching[kept], columns[kept]
            rows.append(reaching)
            order.append(numbers[columns])
    return Challengers(torch.cat(rows), torch.cat(order))
