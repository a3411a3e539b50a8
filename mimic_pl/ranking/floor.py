"""A floor under the top lists: scores that their last entities will reach at least, known before the scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimic_pl.ranking.index import EntityIndex
from mimic_pl.ranking.scan import OVERALL, TOLERANCE
from mimic_pl.ranking.stored_states import pick
from mimic_pl.units import Matcher, States

_ENTITIES = 1 << 15
"""Local entities that are looked through; of more than these, the lists of the scan's first blocks are as good."""

_MENTIONS = 32
"""Mentions below which the entities' vectors cost more than the floor saves."""

_PROMISING = 1.5
"""Entities to score per slot of a list."""

_FEW = 16
"""Entities per promising one below which bounds alone are as fast."""


def floor(matcher: Matcher, mentions: States, index: EntityIndex, k: int, size: int) -> Tensor | None:
    """Scores that at least ``k`` of the local entities reach, by mention, ``[mentions]``; None if unknown.

    The entities whose vectors have the largest products with a mention's are nearly always those with the highest
    scores (see :meth:`Matcher.vector_products`). They are scored, and the k-th best score is the floor. A scan that
    knows it leaves far fewer pairs undecided than one that starts from empty lists. From a disk, the entities would be
    read twice, which takes longer than it saves.

    Args:
        matcher: Scores mentions against entities.
        mentions: States of the mentions, float32.
        index: The entities.
        k: Length of the lists.
        size: Entities per block.
    """
    mention_count = len(next(iter(next(iter(mentions.values())).values())))
    promising = math.ceil(_PROMISING * k)
    local = min(len(index.order), _ENTITIES)
    if not (k and index.on_device) or local < _FEW * promising or mention_count < _MENTIONS:
        return None
    best: list[Tensor] = []
    numbers: list[Tensor] = []
    seen = 0
    for order, block in index.blocks(size):
        products = matcher.vector_products(mentions, block.states)
        if products is None:
            return None
        largest = products.topk(min(promising, len(order)), dim=1)
        best.append(largest.values)
        numbers.append(order[largest.indices])
        seen += len(order)
        if seen >= local:
            break
    found = torch.cat(numbers, dim=1).gather(1, torch.cat(best, dim=1).topk(promising, dim=1).indices)
    every = torch.arange(len(found), device=found.device)
    scores = [_scores(matcher, mentions, index, rows, found) for rows in torch.split(every, 8)]
    return torch.cat(scores).topk(k, dim=1).values[:, -1]


def _scores(matcher: Matcher, mentions: States, index: EntityIndex, rows: Tensor, found: Tensor) -> Tensor:
    """Overall scores of some mentions' promising entities ``found``, less rounding errors, ``[rows, promising]``."""
    order = found[rows]
    pairs = rows.repeat_interleave(order.shape[1])
    scores = matcher.pairs(pick(mentions, pairs), index.select(order.flatten()).states)
    scores = {OVERALL: matcher.overall(scores), **scores}
    margin = TOLERANCE * torch.stack([score.abs().amax() for score in scores.values()]).amax()
    return (scores[OVERALL] - margin).view_as(order)
