"""Metrics over ranks: Hits@k, mean reciprocal rank and mean rank, as torchmetrics classes.

The rank of a mention is the 1-based position of its best-ranked gold among *all* entities of the knowledge base, in one
total order: score descending, and between equal scores position in the knowledge base ascending. Top-k lists are
printed in the same order. The rule is deterministic and adds up over shards, and a constant scorer gains nothing by it:
its ranks are the golds' positions in the knowledge base, whatever the scores.

A rank of 0 says that no gold of the mention is in the knowledge base. Such a mention counts in every denominator: as a
miss for Hits@k, as 0 for the reciprocal rank, and as one place behind the last entity for the mean rank.

Every metric is a ratio of two integer sums, so memory does not grow with the data, and neither batch size, nor order,
nor the number of processes changes the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

HITS = (1, 3, 5, 10, 20)
"""The k of Hits@k that are reported."""


class RankMetric(Metric):
    """Mean over mentions of an integer value of the rank; a subclass says which in :meth:`values`.

    Args:
        kwargs: Arguments of :class:`torchmetrics.Metric`, for example ``dist_sync_on_step``.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    mentions: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("mentions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """What each rank adds to the sum, int64 ``[mentions]``."""
        raise NotImplementedError

    def update(self, ranks: Tensor, num_entities: int) -> None:
        """Add a batch.

        Args:
            ranks: 1-based ranks, int64 ``[mentions]``; 0 where no gold is in the knowledge base.
            num_entities: Size of the knowledge base.

        Raises:
            TypeError: The ranks are no integers.
            ValueError: A rank is negative or larger than the knowledge base.
        """
        if ranks.is_floating_point() or ranks.is_complex() or ranks.dtype == torch.bool:
            raise TypeError(f"{type(self).__name__} takes ranks as integers, got {ranks.dtype}.")
        outside = (ranks < 0) | (ranks > num_entities)
        if outside.any():
            raise ValueError(
                f"{type(self).__name__}: rank {int(ranks[outside][0])} lies outside of 0 .. {num_entities}, the size "
                "of the knowledge base. Pass 1-based ranks, and 0 for a mention without a gold in it."
            )
        # Not in place: a state reset inside of inference mode may meet an update outside of it.
        self.total = self.total + self.values(ranks.long(), num_entities).sum()
        self.mentions = self.mentions + ranks.numel()

    def compute(self) -> Tensor:
        """The mean over all mentions so far, a float32 scalar; NaN if there was none."""
        return self.total.float() / self.mentions.float()


class HitsAtK(RankMetric):
    """Share of mentions whose gold is among the best ``k`` entities.

    Args:
        k: How many entities count as a hit, at least 1.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = HitsAtK(k=3)
        >>> metric(torch.tensor([1, 3, 4, 0]), num_entities=10)
        tensor(0.5000)
    """

    higher_is_better = True

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"HitsAtK needs k of at least 1, got {k}.")
        self.k = k

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """1 for a hit, 0 for a miss."""
        return ((ranks >= 1) & (ranks <= self.k)).long()


class MeanReciprocalRank(RankMetric):
    """Mean of 1 / rank; 0 for a mention without a gold in the knowledge base.

    Example:
        >>> metric = MeanReciprocalRank()
        >>> metric(torch.tensor([1, 2, 4, 0]), num_entities=10)
        tensor(0.4375)
    """

    higher_is_better = True
    # Reciprocals are summed in units of 2^-40: integers add up to the same in any order, and devices without float64
    # (MPS) need none. The error is below 1e-12 per mention; the sum holds eight million mentions.
    scale = 2**40

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """The reciprocal rank in units of ``1 / scale``, rounded down."""
        return torch.where(ranks == 0, 0, self.scale // ranks.clamp_min(1))

    def compute(self) -> Tensor:
        """The mean over all mentions so far, a float32 scalar; NaN if there was none."""
        return super().compute() / self.scale


class MeanRank(RankMetric):
    """Mean of the ranks; ``num_entities + 1`` for a mention without a gold in the knowledge base.

    Example:
        >>> metric = MeanRank()
        >>> metric(torch.tensor([1, 2, 4, 0]), num_entities=10)
        tensor(4.5000)
    """

    higher_is_better = False

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """The rank itself, or one place behind the last entity."""
        return torch.where(ranks == 0, num_entities + 1, ranks)


def rank_metrics(prefix: str) -> MetricCollection:
    """Build the published metrics for one score: ``hits@1/3/5/10/20``, ``mrr`` and ``mr``.

    Args:
        prefix: What the names start with, for example ``"val/"`` for the overall score or ``"val/text/"`` for a unit.

    Example:
        >>> metrics = rank_metrics("val/")
        >>> metrics.update(torch.tensor([1, 2, 4, 0]), num_entities=10)
        >>> metrics.compute()["val/mrr"]
        tensor(0.4375)
    """
    metrics: dict[str, Metric | MetricCollection] = {f"hits@{k}": HitsAtK(k) for k in HITS}
    metrics |= {"mrr": MeanReciprocalRank(), "mr": MeanRank()}
    # torchmetrics takes metrics whose states are equal after the first batch for the same metric and then updates only
    # one of them: Hits@1 would follow Hits@3 for ever if the first batch has no rank of 2 or 3.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
