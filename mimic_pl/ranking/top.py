"""The best entities seen so far, in the total order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup


class TopEntities:
    """The ``k`` best entities of the blocks seen so far for each mention: score descending, then position.

    Args:
        mentions: Number of mentions.
        k: How many to keep.
        names: Names of the scores that are kept of them; ``overall`` orders.
        device: Where the lists are kept.
    """

    def __init__(self, mentions: int, k: int, names: tuple[str, ...], device: torch.device) -> None:
        self.k = k
        self.positions = torch.full((mentions, k), -1, dtype=torch.int64, device=device)
        self.state_hashes = torch.zeros((mentions, k), dtype=torch.int64, device=device)
        self.scores = {name: torch.full((mentions, k), -torch.inf, device=device) for name in names}

    @property
    def last(self) -> Tensor:
        """Score of each mention's last entity, ``[mentions]``; -inf while a list is not full."""
        return self.scores["overall"][:, -1]

    @property
    def last_state_hash(self) -> Tensor:
        """State hash of each mention's last entity, int64 ``[mentions]``."""
        return self.state_hashes[:, -1]

    def merge(self, rows: Tensor, positions: Tensor, state_hashes: Tensor, scores: dict[str, Tensor]) -> None:
        """Merge pairs of a block, ordered by mention and then position; all positions come after those seen so far.

        Args:
            rows: Mentions, int64 ``[pairs]``.
            positions: Entities' positions, int64 ``[pairs]``.
            state_hashes: The entities' state hashes, int64 ``[pairs]``.
            scores: Scores by name, ``[pairs]``.
        """
        if not len(rows):
            return
        counts = torch.bincount(rows, minlength=len(self.positions))
        column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        place = rows, self.k + column

        def extended(kept: Tensor, new: Tensor, filling: float) -> Tensor:
            wide = kept.new_full((len(kept), self.k + int(counts.max())), filling)
            wide[:, : self.k] = kept
            wide[place] = new
            return wide

        overall = extended(self.scores["overall"], scores["overall"], -torch.inf)
        # Ties keep the order of the columns, which is that of the positions.
        order = overall.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.positions = extended(self.positions, positions, -1).gather(1, order)
        self.state_hashes = extended(self.state_hashes, state_hashes, 0).gather(1, order)
        self.scores = {
            name: extended(kept, scores[name], -torch.inf).gather(1, order) for name, kept in self.scores.items()
        }

    def rows(self, chosen: Tensor) -> TopEntities:
        """The lists of some of the mentions, int64 ``[n]``."""
        return self._with(
            self.positions[chosen],
            self.state_hashes[chosen],
            {name: kept[chosen] for name, kept in self.scores.items()},
        )

    def joined(self, processes: ProcessGroup) -> TopEntities:
        """The lists of the same mentions that all processes have, each of entities of its own, merged; collective."""
        if processes.world_size == 1:
            return self
        names = list(self.scores)
        own = [self.positions, self.state_hashes, *self.scores.values()]
        parts = processes.gather(own, [len(self.positions)] * processes.world_size)
        positions, state_hashes, *scores = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
        overall = scores[names.index("overall")]
        order = positions.argsort(dim=1, stable=True)
        by_score = overall.gather(1, order).sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, by_score)[:, : self.k]
        return self._with(
            positions.gather(1, order),
            state_hashes.gather(1, order),
            {name: score.gather(1, order) for name, score in zip(names, scores, strict=True)},
        )

    def _with(self, positions: Tensor, state_hashes: Tensor, scores: dict[str, Tensor]) -> TopEntities:
        lists = copy.copy(self)
        lists.positions, lists.state_hashes, lists.scores = positions, state_hashes, scores
        return lists


def first_of_each_hash(rows: Tensor, state_hashes: Tensor, k: int) -> Tensor:
    """Which pairs are among the first ``k`` with their state hash for their mention, bool ``[pairs]``.

    Args:
        rows: Mentions, int64 ``[pairs]``.
        state_hashes: State hashes of the entities, int64 ``[pairs]``.
        k: How many of each hash to keep.
    """
    order = state_hashes.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    place = torch.arange(len(order), device=rows.device)
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (rows[order[1:]] != rows[order[:-1]]) | (state_hashes[order[1:]] != state_hashes[order[:-1]])
    start = torch.where(begins, place, 0).cummax(dim=0).values
    return torch.zeros_like(begins).scatter(0, order, place - start < k)
