"""The scores that decide near ties: of single pairs, in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mimic_pl.ranking.states import pick
from mimic_pl.units import Matcher, States

_AT_ONCE = 64
"""Pairs whose states are copied to float64 at once, some 100 kB each: what stays in a core's cache."""


class ExactScores:
    """Scores of chosen pairs in float64, rounded to float32: these define the order of the entities.

    A matrix product's last bits depend on its shape, so the float32 scores of a block depend on the block. Where they
    are too close to a mention's gold to decide, both are computed here, from the same stored states, and rounded: equal
    entities are equal, and no size of blocks and no number of processes changes a rank.

    Args:
        matcher: Scores pairs.
        mentions: States of the mentions.
    """

    def __init__(self, matcher: Matcher, mentions: States) -> None:
        self.matcher = copy.deepcopy(matcher).double()
        self.mentions = mentions

    def __call__(self, rows: Tensor, entities: States, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Scores of aligned pairs, float32 ``[pairs]`` by name.

        Args:
            rows: Mentions, int64 ``[pairs]``.
            entities: States of as many entities.
            names: Units to score by; by default all of them, and ``overall``.
        """
        found: dict[str, list[Tensor]] = {}
        for start in range(0, max(1, len(rows)), _AT_ONCE):
            part = torch.arange(start, min(start + _AT_ONCE, len(rows)), device=rows.device)
            sides = pick(self.mentions, rows[part], double=True), pick(entities, part, double=True)
            scores = self.matcher.pairs(*sides, names)
            if names is None:
                scores = {"overall": self.matcher.combine(scores), **scores}
            for name, score in scores.items():
                found.setdefault(name, []).append(score.float())
        return {name: torch.cat(parts) for name, parts in found.items()}
