"""Metrics over ranks: Hits@k, recall@k, mean reciprocal rank and mean rank, as torchmetrics classes.

The rank of a mention is the 1-based position of its best-ranked gold among *all* entities of the knowledge base, in one
total order: score descending, and between equal scores position in the knowledge base ascending. Top-k lists are
printed in the same order. The rule is deterministic and adds up over shards, and a constant scorer gains nothing by it:
its ranks are the golds' positions in the knowledge base, whatever the scores.

A rank of 0 says that no gold of the mention is in the knowledge base. Such a mention counts in every denominator: as a
miss for Hits@k, as 0 for the reciprocal rank, and as one place behind the last entity for the mean rank.

A mention may have several golds. Its rank is then that of the best one, and Hits@k asks whether any of them is among
the best ``k``. Recall@k asks how many are: it is the mean over mentions of the share of a mention's golds that are
among the best ``k`` entities. A gold that is not in the knowledge base counts in the share's denominator and is never
found; a mention without any gold counts as 0. So recall@k equals Hits@k where every mention has one gold, and it is
reported only where some mention has several. A mention with more golds than ``k`` cannot reach 1.

Every metric is a ratio of two integer sums, so memory does not grow with the data, and neither batch size, nor order,
nor the number of processes changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

HITS = (1, 3, 5, 10, 20)
"""The k of Hits@k and recall@k that are reported."""

GROUPS = ("seen", "unseen")
"""Mentions with a gold that was a gold in training, and those without: ``test`` reports them separately, too."""


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


class RecallAtK(Metric):
    """Mean over mentions of the share of a mention's golds that are among the best ``k`` entities.

    Args:
        k: How many entities are looked at, at least 1.
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
            gold_ranks: 1-based rank of every gold, int64 ``[mentions, golds]``; 0 where there is none, or where it is
                not in the knowledge base.
            gold_count: Golds of each mention, in the knowledge base or not, int64 ``[mentions]``.

        Raises:
            ValueError: A mention has more ranks than golds.
        """
        if (gold_ranks.gt(0).sum(dim=1) > gold_count).any():
            raise ValueError("RecallAtK: a mention has more ranks than golds. Count all of its golds in gold_count.")
        found = (gold_ranks.ge(1) & gold_ranks.le(self.k)).sum(dim=1)
        self.total = self.total + (self.scale * found // gold_count.clamp_min(1)).sum()
        self.mentions = self.mentions + len(gold_ranks)

    def compute(self) -> Tensor:
        """The mean over all mentions so far, a float32 scalar; NaN if there was none."""
        return self.total.float() / self.mentions.float() / self.scale


class MentionCount(RankMetric):
    """How many mentions there were, whatever their ranks."""

    def values(self, ranks: Tensor, num_entities: int) -> Tensor:
        """Nothing: mentions are counted anyway."""
        return torch.zeros_like(ranks)

    def compute(self) -> Tensor:
        """The number of mentions so far, a float32 scalar."""
        return self.mentions.float()


class GoldMetrics(nn.Module):
    """What is reported only where a data set has it: recall over several golds, and golds seen in training or not.

    - ``{stage}/recall@k`` and ``{stage}/{unit}/recall@k`` where some mention has several golds;
    - for the overall score ``{stage}/seen/...`` and ``{stage}/unseen/...``: the published metrics and the number of
      ``mentions`` of each of the two :data:`GROUPS`, where both occur. Mentions without a gold are in neither.

    Args:
        stage: ``val`` or ``test``.
        names: The scores that golds are ranked by, ``overall`` among them.
    """

    def __init__(self, stage: str, names: Sequence[str]) -> None:
        super().__init__()

        def collection(prefix: str, metrics: dict[str, Metric | MetricCollection]) -> MetricCollection:
            return MetricCollection(metrics, prefix=prefix, compute_groups=False)

        self.recall = nn.ModuleDict(
            {
                name: collection(
                    f"{stage}/" if name == "overall" else f"{stage}/{name}/",
                    {f"recall@{k}": RecallAtK(k) for k in HITS},
                )
                for name in names
            }
        )
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
            gold_ranks: Rank of every gold, int64 ``[mentions, golds]``; empty if nobody ranked them all.
            gold_count: Golds of each mention, int64 ``[mentions]``; ``None`` where no mention of the split has several.
            seen: 1 for a mention with a gold seen in training, 0 for one without, int64 ``[mentions]``, other numbers
                for those without gold; ``None`` where that is not known.
            num_entities: Size of the knowledge base.
        """
        if gold_count is not None:
            for name, every in gold_ranks.items():
                self._collection(self.recall, name).update(every, gold_count)
        if seen is not None:
            for group, wanted in zip(GROUPS, (1, 0), strict=True):
                chosen = ranks["overall"][seen == wanted]
                self._collection(self.groups, group).update(chosen, num_entities=num_entities)

    def compute(self, anywhere: Callable[[bool], bool] = bool) -> dict[str, Tensor]:
        """All that there is to report; every process must ask.

        Args:
            anywhere: Whether something holds for any process, from whether it does for this one.
        """
        told: dict[str, Tensor] = {}
        for collections in (self.recall, self.groups):
            mine = [self._collection(collections, name) for name in collections]
            if anywhere(any(metric.update_called for metrics in mine for metric in metrics.values())):
                told |= {name: value for metrics in mine for name, value in metrics.compute().items()}
        if any(value.isnan() for value in told.values()):  # one of the two groups has no mention
            told = {name: value for name, value in told.items() if name.split("/")[1] not in GROUPS}
        return told

    def reset(self) -> None:
        """Forget all mentions."""
        for collections in (self.recall, self.groups):
            for name in collections:
                self._collection(collections, name).reset()

    @staticmethod
    def _collection(collections: nn.ModuleDict, name: str) -> MetricCollection:
        return cast(MetricCollection, collections[name])
