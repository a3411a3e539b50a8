"""Exact ranks and top-k over the whole knowledge base, in blocks, without storing mentions x entities scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mimic_pl.construction import Recorded
from mimic_pl.errors import DeviceMemoryError
from mimic_pl.ranges import COUNT, in_range, one_of
from mimic_pl.ranking.exact import with_own_tensors
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.ranking.rerank import rerank
from mimic_pl.ranking.scan import Golds, Scan
from mimic_pl.ranking.search import Search
from mimic_pl.ranking.stored_states import gather_states, joined
from mimic_pl.units import Matcher, States, flat

_PAIRS_ON_CPU = 1 << 19
"""Pairs per block on a CPU: the dozens of values per pair mostly stay in the caches."""

_PAIRS_ON_DEVICE = 1 << 22
"""Maximum pairs per block on other devices; more do not improve utilization."""

_BYTES_PER_PAIR = 1024
"""Generous estimate of the working memory per pair on other devices."""


class Ranking(NamedTuple):
    """Ranks of the golds of a block of mentions among all entities, and the top entities.

    Attributes:
        ranks: For ``overall`` and each ranked unit, the 1-based rank of the best-ranked gold, int64 ``[mentions]``; 0
        if
            the mention has no gold in the knowledge base.
        top_entities: Order numbers of the top entities by overall score, best first, int64 ``[mentions, k]``.
        top_scores: For ``overall`` and each unit, the scores of ``top_entities``, float32 ``[mentions, k]``.
        gold_ranks: Like ``ranks``, for every gold, int64 ``[mentions, golds]``; 0 where there is none.
    """

    ranks: dict[str, Tensor]
    top_entities: Tensor
    top_scores: dict[str, Tensor]
    gold_ranks: dict[str, Tensor] = {}

    def reranked(self, scores: Tensor) -> Ranking:
        """Reorder the top entities, and the golds among them, by new overall scores, ``[mentions, k]``.

        Ties keep their order. Golds outside the top entities keep their ranks.
        """
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        ranks, k = self.gold_ranks["overall"], order.shape[1]
        new_ranks = (order.argsort(dim=1) + 1).gather(1, (ranks - 1).clamp(0, k - 1))
        ranks = torch.where(ranks.gt(0) & ranks.le(k), new_ranks, ranks)
        best = torch.where(ranks.gt(0), ranks, torch.iinfo(torch.int64).max).amin(dim=1)
        top_scores = {name: score.gather(1, order) for name, score in self.top_scores.items()}
        return Ranking(
            {**self.ranks, "overall": torch.where(ranks.gt(0).any(dim=1), best, 0)},
            self.top_entities.gather(1, order),
            {**top_scores, "overall": scores},
            {**self.gold_ranks, "overall": ranks},
        )

    def at(self, rows: Tensor) -> Ranking:
        """The ranking of some of the mentions, int64 ``[n]``."""
        return Ranking(
            {name: ranks[rows] for name, ranks in self.ranks.items()},
            self.top_entities[rows],
            {name: scores[rows] for name, scores in self.top_scores.items()},
            {name: ranks[rows] for name, ranks in self.gold_ranks.items()},
        )


UnitRanks = Literal["all", "cheap"]


class Ranker(Recorded):
    """Ranks the whole knowledge base for a block of mentions.

    Entities are totally ordered by descending score, then by order number. The rank of a gold is its position in that
    order, so top-k lists and ranks agree, and a constant scorer gains nothing: it ranks golds by their order numbers.
    The order is that of scores computed in float64 from the states of the index and rounded to float32. They are only
    computed where float32 leaves the order undecided, so ranks depend neither on block size, nor on the order in which
    entities are stored, nor on pruning, nor on the number of processes.

    Pruning: a pair is first bounded (see :meth:`~mimic_pl.units.Unit.bounds`), at a fraction of the cost of its score.
    If the bounds decide whether it ranks ahead of the gold and exclude it from the top, it is never scored.

    If the index is sharded across processes, each process passes its own mentions. All processes rank all mentions
    among their local entities: gold scores are exchanged, counts summed, top lists merged, and each process gets the
    results for its mentions. All must make the same number of calls; if one raises an error, all raise it.

    Each gold is ranked separately: a mention with n golds costs as much as n mentions.

    A matcher may reorder each list of top entities (see :meth:`~mimic_pl.units.Matcher.rerank`): a gold among them gets
    its new rank, all others keep theirs.

    Args:
        top_k: Number of top entities per mention.
        unit_ranks: ``all`` also ranks by each unit's score; ``cheap`` skips units with expensive scores (TGLU), since
            bounds leave more pairs undecided for their ranks than for the overall rank.
        prune: Bound before scoring; if False, every pair is scored, with the same ranks.
        pairs_per_block: Pairs that are processed at once. The working set is proportional to it, some 100 bytes per
            pair, or 1 kB where attention is computed on a GPU, and independent of the size of the knowledge base. By
            default 524,288 on a CPU, and on other devices what fits in a quarter of the free memory, at most 4 million.

    Raises:
        ConfigError: ``top_k`` or ``pairs_per_block`` is below 1.
    """

    @in_range(top_k=COUNT, unit_ranks=one_of(UnitRanks), pairs_per_block=COUNT)
    def __init__(
        self,
        top_k: int = 10,
        unit_ranks: UnitRanks = "all",
        prune: bool = True,
        pairs_per_block: int | None = None,
    ) -> None:
        self.top_k = top_k
        self.unit_ranks = unit_ranks
        self.prune = prune
        self.pairs_per_block = pairs_per_block

    def ranked(self, matcher: Matcher) -> tuple[str, ...]:
        """Names of the scores by which golds are ranked."""
        return matcher.score_names if self.unit_ranks == "all" else matcher.cheap_score_names

    @torch.no_grad()
    def __call__(self, matcher: Matcher, mentions: States, index: EntityIndex, gold: Tensor | None = None) -> Ranking:
        """Rank the golds and find the top entities.

        Args:
            matcher: Scores mentions against entities.
            mentions: States of the mentions, float32.
            index: All entities.
            gold: Order numbers of each mention's golds, int64 ``[mentions, golds]``, padded with -1; each is ranked.
                Without golds the top entities are found, and all ranks are 0.

        Raises:
            ValueError: ``gold`` has another type or shape.
            NonFiniteScoreError: A score is NaN or infinite; the error has the row of the mention in this block and the
                order number of the entity.
            DeviceMemoryError: Even a small block does not fit in the device's memory.
        """
        ranking = self._rank(matcher, mentions, index, _checked_gold(gold, mentions, index.device))
        if not matcher.reranks:
            return ranking
        with full_precision(index.device):
            matcher = in_float32(matcher)
            return ranking.reranked(rerank(matcher, mentions, ranking.top_entities, ranking.top_scores, index))

    def _rank(self, matcher: Matcher, mentions: States, index: EntityIndex, gold: Tensor) -> Ranking:
        processes = index.processes
        parts = gather_states(processes, mentions, gold)
        sizes = [len(golds) for _, golds in parts]
        mentions, gold = joined([states for states, _ in parts]), torch.cat([golds for _, golds in parts])
        matcher = in_float32(matcher)
        prune = self.prune and matcher.monotone
        with full_precision(index.device):
            search = Search(matcher, mentions, gold, index, self.ranked(matcher), self.top_k, prune)
            golds = search.share_golds(processes.run_together(search.score_golds, index.device))
            scan = processes.run_together(lambda: self._scan(search, golds), index.device)
            gold_ranks, top = search.merge(scan)
        last = torch.iinfo(torch.int64).max
        best = {name: ranks.masked_fill(ranks.eq(0), last).amin(dim=1) for name, ranks in gold_ranks.items()}
        ranks = {name: ranks.masked_fill(ranks.eq(last), 0) for name, ranks in best.items()}
        start = sum(sizes[: processes.rank])
        local = torch.arange(start, start + sizes[processes.rank], device=gold.device)
        return Ranking(ranks, top.order, top.scores, gold_ranks).at(local)

    def _scan(self, search: Search, golds: dict[str, Golds]) -> Scan:
        """Scan in blocks that fit in the device's memory; retry once with smaller ones if it runs out."""
        device = search.index.device
        pairs = self.pairs_per_block or pairs_that_fit(device)
        try:
            return search.scan(golds, pairs)
        except torch.OutOfMemoryError:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        # Outside the handler, so that the failed block's tensors have been freed.
        smaller = max(1, pairs // 8)
        try:
            return search.scan(golds, smaller)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{device} ran out of memory ranking {len(search.gold)} mentions, with {pairs} pairs at once and with "
                f"{smaller}. Rank fewer mentions at once (--data.eval_batch_size), or keep the index in host memory "
                "(--model.index.storage host)."
            ) from error


def _checked_gold(gold: Tensor | None, mentions: States, device: torch.device) -> Tensor:
    size = len(next(iter(flat(mentions).values())))
    if gold is None:
        return torch.full((size, 1), -1, device=device)
    if gold.dtype != torch.int64 or gold.dim() != 2 or len(gold) != size:
        raise ValueError(
            f"gold is {gold.dtype} {list(gold.shape)}, but must be int64 [{size}, golds]: order numbers of the golds "
            f"of {size} mentions, padded with -1."
        )
    return gold


def in_float32(matcher: Matcher) -> Matcher:
    """The matcher itself, or a float32 copy if its weights have another dtype, since states are float32."""
    if all(weight.dtype == torch.float32 for weight in matcher.parameters()):
        return matcher
    return with_own_tensors(matcher).float()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Use full float32 precision regardless of training settings: errors must stay below the search's tolerance."""
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)


def pairs_that_fit(device: torch.device) -> int:
    """Pairs of a block that fit in the device's memory."""
    if device.type != "cuda":
        return _PAIRS_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    return max(_PAIRS_ON_CPU, min(_PAIRS_ON_DEVICE, free // 4 // _BYTES_PER_PAIR))
