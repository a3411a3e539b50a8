"""Ranking metrics: Hits@k, recall@k, mean reciprocal rank and mean rank, as torchmetrics classes.

The rank of a mention is the 1-based position of its best-ranked gold among *all* entities of the knowledge base,
ordered by descending score and then by position in the knowledge base. Top-k lists use the same order. It is
deterministic, counts can be summed over shards, and a constant scorer gains nothing: its ranks are the golds' positions
in the knowledge base.

A rank of 0 means that no gold of the mention is in the knowledge base. Such a mention counts in every denominator: as a
miss for Hits@k, as 0 for the reciprocal rank, and as one more than the last rank for the mean rank.

If a mention has several golds, its rank is that of the best one, and Hits@k is whether any of them is among the top
``k``. Recall@k is the mean over mentions of the fraction of a mention's golds among the top ``k``. A gold that is not
in the knowledge base counts in the denominator and is never found; a mention without any gold counts as 0. Recall@k
equals Hits@k if every mention has one gold, and is reported only if some mention has several. It is below 1 for a
mention with more than ``k`` golds.

Every metric is a ratio of two integer sums, so memory is constant, and the result depends neither on batch size, nor on
order, nor on the number of processes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

HITS = (1, 3, 5, 10, 20)
"""Values of k for which Hits@k and recall@k are reported."""

GROUPS = ("seen", "unseen")
"""Mentions with and without a gold seen in training, for which ``test`` also reports separate metrics."""


class RankMetric(Metric):
    """Mean over mentions of an integer function of the rank, which subclasses define in :meth:`values`.

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

    @abstractmethod
    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """Value of each rank, int64 ``[mentions]``."""

    def update(self, ranks: Tensor, num_entities: int) -> None:
        """Add a batch.

        Args:
            ranks: 1-based ranks, int64 ``[mentions]``; 0 if no gold is in the knowledge base.
            num_entities: Size of the knowledge base.

        Raises:
            TypeError: The ranks are not integers.
            ValueError: A rank is negative or larger than the knowledge base.
        """
        if ranks.is_floating_point() or ranks.is_complex() or ranks.dtype == torch.bool:
            raise TypeError(f"{type(self).__name__} needs ranks as integers, got {ranks.dtype}.")
        outside = (ranks < 0) | (ranks > num_entities)
        if outside.any():
            raise ValueError(
                f"{type(self).__name__}: rank {int(ranks[outside][0])} is outside 0 .. {num_entities}, the size of the "
                "knowledge base. Pass 1-based ranks, and 0 for a mention without a gold in it."
            )
        # Not in place: the state may have been reset in inference mode and be updated outside it.
        self.total = self.total + self.values(ranks.long(), num_entities).sum()
        self.mentions = self.mentions + ranks.numel()

    def compute(self) -> Tensor:
        """Mean over all mentions so far, a float32 scalar; NaN without mentions."""
        return self.total.float() / self.mentions.float()


class HitsAtK(RankMetric):
    """Fraction of mentions whose gold is among the top ``k`` entities.

    Args:
        k: Number of top entities, at least 1.
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
    # Reciprocals are summed in units of 2^-40: integer sums do not depend on order and need no float64, which MPS
    # lacks. The error is below 1e-12 per mention; the sum can count eight million mentions.
    scale = 2**40

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """Reciprocal rank in units of ``1 / scale``, rounded down."""
        return torch.where(ranks == 0, 0, self.scale // ranks.clamp_min(1))

    def compute(self) -> Tensor:
        """Mean over all mentions so far, a float32 scalar; NaN without mentions."""
        return super().compute() / self.scale


class MeanRank(RankMetric):
    """Mean rank; ``num_entities + 1`` for a mention without a gold in the knowledge base.

    Example:
        >>> metric = MeanRank()
        >>> metric(torch.tensor([1, 2, 4, 0]), num_entities=10)
        tensor(4.5000)
    """

    higher_is_better = False

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """The rank, or one more than the last rank."""
        return torch.where(ranks == 0, num_entities + 1, ranks)


def rank_metrics(prefix: str) -> MetricCollection:
    """Build the published metrics for one score: ``hits@1/3/5/10/20``, ``mrr`` and ``mr``.

    Args:
        prefix: Prefix of the names, for example ``"val/"`` for the overall score or ``"val/text/"`` for a unit.

    Example:
        >>> metrics = rank_metrics("val/")
        >>> metrics.update(torch.tensor([1, 2, 4, 0]), num_entities=10)
        >>> metrics.compute()["val/mrr"]
        tensor(0.4375)
    """
    metrics: dict[str, Metric | MetricCollection] = {f"hits@{k}": HitsAtK(k) for k in HITS}
    metrics |= {"mrr": MeanReciprocalRank(), "mr": MeanRank()}
    # torchmetrics merges metrics whose states are equal after the first batch: Hits@1 would follow Hits@3 from then on
    # if the first batch has no rank of 2 or 3.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class RecallAtK(Metric):
    """Mean over mentions of the fraction of a mention's golds among the top ``k`` entities.

    Args:
        k: Number of top entities, at least 1.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = RecallAtK(k=3)
        >>> metric(torch.tensor([[2, 9], [1, 0]]), gold_count=torch.tensor([2, 1]))
        tensor(0.7500)
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    scale = MeanReciprocalRank.scale
    total: Tensor
    mentions: Tensor

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"RecallAtK needs k of at least 1, got {k}.")
        self.k = k
        self.add_state("total", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("mentions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, gold_ranks: Tensor, gold_count: Tensor) -> None:
        """Add a batch.

        Args:
            gold_ranks: 1-based rank of every gold, int64 ``[mentions, golds]``; 0 for padding and for golds that are
                not in the knowledge base.
            gold_count: Number of golds of each mention, in the knowledge base or not, int64 ``[mentions]``.

        Raises:
            ValueError: A mention has more ranks than golds.
        """
        if (gold_ranks.gt(0).sum(dim=1) > gold_count).any():
            raise ValueError("RecallAtK: a mention has more ranks than golds. Count all of its golds in gold_count.")
        hits = (gold_ranks.ge(1) & gold_ranks.le(self.k)).sum(dim=1)
        self.total = self.total + (self.scale * hits // gold_count.clamp_min(1)).sum()
        self.mentions = self.mentions + len(gold_ranks)

    def compute(self) -> Tensor:
        """Mean over all mentions so far, a float32 scalar; NaN without mentions."""
        return self.total.float() / self.mentions.float() / self.scale


class MentionCount(RankMetric):
    """Number of mentions, whatever their ranks."""

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """Zeros: only the mentions are counted."""
        return torch.zeros_like(ranks)

    def compute(self) -> Tensor:
        """Number of mentions so far, a float32 scalar."""
        return self.mentions.float()


class GoldMetrics(nn.Module):
    """Metrics that need several golds per mention, or golds seen and unseen in training; reported only if applicable.

    - ``{stage}/recall@k`` and ``{stage}/{unit}/recall@k`` if some mention has several golds;
    - for the overall score ``{stage}/seen/...`` and ``{stage}/unseen/...``: the published metrics and the number of
      ``mentions`` of each of the two :data:`GROUPS`, if both occur. Mentions without a gold are in neither.

    Args:
        stage: ``val`` or ``test``.
        names: Names of the scores by which golds are ranked, including ``overall``.
    """

    def __init__(self, stage: str, names: Sequence[str]) -> None:
        super().__init__()
        self.recall = nn.ModuleDict()
        for name in names:
            prefix = f"{stage}/" if name == "overall" else f"{stage}/{name}/"
            recalls: dict[str, Metric | MetricCollection] = {f"recall@{k}": RecallAtK(k) for k in HITS}
            self.recall[name] = MetricCollection(recalls, prefix=prefix, compute_groups=False)
        self.groups = nn.ModuleDict()
        for group in GROUPS:
            metrics = rank_metrics(f"{stage}/{group}/")
            metrics.add_metrics({"mentions": MentionCount()})
            self.groups[group] = metrics

    def update(
        self,
        ranks: Mapping[str, Tensor],
        gold_ranks: Mapping[str, Tensor],
        gold_count: Tensor | None,
        seen: Tensor | None,
        num_entities: int,
    ) -> None:
        """Add a batch.

        Args:
            ranks: Rank of each mention by score name, int64 ``[mentions]``.
            gold_ranks: Rank of every gold by score name, int64 ``[mentions, golds]``; may be empty.
            gold_count: Number of golds of each mention, int64 ``[mentions]``; ``None`` if no mention of the split has
                several.
            seen: 1 for a mention with a gold seen in training, 0 for one without, other values for mentions without
                golds, int64 ``[mentions]``; ``None`` if unknown.
            num_entities: Size of the knowledge base.
        """
        if gold_count is not None:
            for name, all_ranks in gold_ranks.items():
                self._collection(self.recall, name).update(all_ranks, gold_count)
        if seen is not None:
            for group, value in zip(GROUPS, (1, 0), strict=True):
                group_ranks = ranks["overall"][seen == value]
                self._collection(self.groups, group).update(group_ranks, num_entities=num_entities)

    def compute(self, on_any_process: Callable[[bool], bool] = bool) -> dict[str, Tensor]:
        """Compute the applicable metrics; collective.

        Args:
            on_any_process: Reduces a condition on this process to whether it holds on any process.
        """
        results: dict[str, Tensor] = {}
        for collections in (self.recall, self.groups):
            local = [self._collection(collections, name) for name in collections]
            if on_any_process(any(metric.update_called for metrics in local for metric in metrics.values())):
                results |= {name: value for metrics in local for name, value in metrics.compute().items()}
        if any(value.isnan() for value in results.values()):  # one of the two groups has no mentions
            results = {name: value for name, value in results.items() if name.split("/")[1] not in GROUPS}
        return results

    def reset(self) -> None:
        """Reset all metrics."""
        for collections in (self.recall, self.groups):
            for name in collections:
                self._collection(collections, name).reset()

    @staticmethod
    def _collection(collections: nn.ModuleDict, name: str) -> MetricCollection:
        return cast(MetricCollection, collections[name])
