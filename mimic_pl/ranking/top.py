"""Running top-k lists of entities."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup


class TopEntities:
    """The top ``k`` entities of the blocks seen so far for each mention, by descending score, then order number.

    Args:
        mentions: Number of mentions.
        k: Number of entities to keep.
        names: Names of the scores to keep; the lists are ordered by ``overall``.
        device: Device of the lists.
    """

    def __init__(self, mentions: int, k: int, names: tuple[str, ...], device: torch.device) -> None:
        self.k = k
        self.order = torch.full((mentions, k), -1, dtype=torch.int64, device=device)
        self.state_hashes = torch.zeros((mentions, k), dtype=torch.int64, device=device)
        self.scores = {name: torch.full((mentions, k), -torch.inf, device=device) for name in names}

    @property
    def last(self) -> Tensor:
        """Overall score of each mention's last entity, ``[mentions]``; -inf while a list is not full."""
        return self.scores["overall"][:, -1]

    def merge(self, rows: Tensor, order: Tensor, state_hashes: Tensor, scores: dict[str, Tensor]) -> None:
        """Merge pairs of a block.

        Args:
            rows: Mentions, ascending, int64 ``[pairs]``.
            order: Order numbers of the entities, int64 ``[pairs]``.
            state_hashes: State hashes of the entities, int64 ``[pairs]``.
            scores: Scores by name, ``[pairs]``.
        """
        if not len(rows):
            return
        counts = torch.bincount(rows, minlength=len(self.order))
        column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        target = rows, self.k + column

        def extended(kept: Tensor, new: Tensor, fill_value: float) -> Tensor:
            wide = kept.new_full((len(kept), self.k + int(counts.max())), fill_value)
            wide[:, : self.k] = kept
            wide[target] = new
            return wide

        self.order, self.state_hashes, self.scores = self._best(
            extended(self.order, order, -1),
            extended(self.state_hashes, state_hashes, 0),
            {name: extended(kept, scores[name], -torch.inf) for name, kept in self.scores.items()},
        )

    def rows(self, chosen: Tensor) -> TopEntities:
        """The lists of some of the mentions, int64 ``[n]``."""
        return self._with(
            self.order[chosen],
            self.state_hashes[chosen],
            {name: kept[chosen] for name, kept in self.scores.items()},
        )

    def joined(self, processes: ProcessGroup) -> TopEntities:
        """Merge the lists that all processes have for the same mentions, each of local entities; collective."""
        if processes.world_size == 1:
            return self
        names = list(self.scores)
        local = [self.order, self.state_hashes, *self.scores.values()]
        parts = processes.gather(local, [len(self.order)] * processes.world_size)
        order, state_hashes, *scores = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
        return self._with(*self._best(order, state_hashes, dict(zip(names, scores, strict=True))))

    def _best(
        self, order: Tensor, state_hashes: Tensor, scores: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Select each mention's first ``k`` entities of ``[mentions, n]``, in the total order."""
        by_order = order.argsort(dim=1)
        by_score = scores["overall"].gather(1, by_order).sort(dim=1, descending=True, stable=True).indices
        best = by_order.gather(1, by_score[:, : self.k])
        return (
            order.gather(1, best),
            state_hashes.gather(1, best),
            {name: score.gather(1, best) for name, score in scores.items()},
        )

    def _with(self, order: Tensor, state_hashes: Tensor, scores: dict[str, Tensor]) -> TopEntities:
        lists = copy.copy(self)
        lists.order, lists.state_hashes, lists.scores = order, state_hashes, scores
        return lists


def first_of_each_hash(rows: Tensor, state_hashes: Tensor, order: Tensor, k: int) -> Tensor:
    """Which pairs are among the first ``k`` of their mention with the same state hash, bool ``[pairs]``.

    Args:
        rows: Mentions, int64 ``[pairs]``.
        state_hashes: State hashes of the entities, int64 ``[pairs]``.
        order: Order numbers of the entities, int64 ``[pairs]``.
        k: Number of entities to keep per hash.
    """
    # Sorted by mention, then hash, then order number.
    pairs = order.argsort()
    pairs = pairs[state_hashes[pairs].argsort(stable=True)]
    pairs = pairs[rows[pairs].argsort(stable=True)]
    index = torch.arange(len(pairs), device=rows.device)
    begins = torch.ones_like(pairs, dtype=torch.bool)
    begins[1:] = (rows[pairs[1:]] != rows[pairs[:-1]]) | (state_hashes[pairs[1:]] != state_hashes[pairs[:-1]])
    start = torch.where(begins, index, 0).cummax(dim=0).values
    return torch.zeros_like(begins).scatter(0, pairs, index - start < k)
