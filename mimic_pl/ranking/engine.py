"""Exact ranks and top-k over the whole knowledge base, in blocks: nothing of size mentions x entities is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError, DeviceMemoryError
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.ranking.rerank import rerank
from mimic_pl.ranking.scan import Golds, Scan
from mimic_pl.ranking.search import Search
from mimic_pl.ranking.stored_states import joined, of_every_process
from mimic_pl.units import Matcher, States

_PAIRS_ON_CPU = 1 << 19
"""Pairs in a block on a CPU: what is kept of each pair, some dozens of numbers, stays near the caches."""

_PAIRS_ON_DEVICE = 1 << 22
"""Pairs in a block on another device at most; more fill it no better."""

_BYTES_PER_PAIR = 1024
"""Working memory of a pair on another device, generously."""


class Ranking(NamedTuple):
    """Where the golds of a block of mentions stand among all entities, and who stands on top.

    Attributes:
        ranks: For ``overall`` and each unit that is ranked, the 1-based rank of the best-ranked gold, int64
            ``[mentions]``; 0 where the mention has no gold in the knowledge base.
        top_entities: Order numbers of the top entities by overall score, best first, int64 ``[mentions, k]``.
        top_scores: For ``overall`` and each unit, the scores of ``top_entities``, float32 ``[mentions, k]``.
        gold_ranks: Like ``ranks``, but of every gold, int64 ``[mentions, golds]``; 0 where there is none.
    """

    ranks: dict[str, Tensor]
    top_entities: Tensor
    top_scores: dict[str, Tensor]
    gold_ranks: dict[str, Tensor] = {}

    def reranked(self, scores: Tensor) -> Ranking:
        """The same with the top entities in the order of new overall scores, ``[mentions, k]``, and the golds in it.

        Ties stay in the order that they had. A gold behind the top entities keeps its rank.
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
        """Those of some of the mentions, int64 ``[n]``."""
        return Ranking(
            {name: ranks[rows] for name, ranks in self.ranks.items()},
            self.top_entities[rows],
            {name: scores[rows] for name, scores in self.top_scores.items()},
            {name: ranks[rows] for name, ranks in self.gold_ranks.items()},
        )


class Ranker(Recorded):
    """Ranks the whole knowledge base for a block of mentions.

    All entities stand in one total order: score descending, then order number. The rank of a gold is its place in that
    order, so top-k lists and ranks agree, and a constant scorer ranks the golds by their order numbers, which gains it
    nothing. The scores that are ordered are those of float64 arithmetic on the states of the index, rounded to float32.
    They are computed where float32 leaves an order open, so that neither the size of the blocks, nor the order in which
    entities are stored, nor pruning, nor the number of processes changes a rank.

    Pruning: a pair is first bounded (see :meth:`~mimic_pl.units.Unit.bounds`), at a fraction of its cost. Where the
    bounds place it before or behind the gold and out of the top, it is never scored.

    Where several processes shard the index, each brings mentions of its own. All rank all mentions among the entities
    that they hold: the scores of golds are shared, counts are summed, top lists merged, and each process gets the
    results of its mentions. They must call equally often, and end with the same error where one of them raises any.

    A mention with several golds takes as much work as so many mentions: each gold is ranked on its own.

    A matcher may reorder each list of top entities (see :meth:`~mimic_pl.units.Matcher.rerank`): a gold among them gets
    the rank of its new place, all others keep theirs.

    Args:
        top_k: How many top entities are kept for each mention.
        unit_ranks: ``all`` also ranks by each unit's own score; ``cheap`` leaves out units whose scores are expensive
            (TGLU), since bounds leave more pairs open for their own ranks than for the overall rank.
        prune: Bound before scoring; off, every pair is scored, to the same ranks.
        pairs_per_block: Pairs that are looked at together. The working set is proportional to it, some 100 bytes a pair
            and 1 kB where attention is computed on a GPU, whatever the size of the knowledge base. By default 524,288
            on a CPU, and on another device what a quarter of its free memory holds, at most 4 million.

    Raises:
        ConfigError: ``top_k`` or ``pairs_per_block`` is below 1.
    """

    def __init__(
        self,
        top_k: int = 10,
        unit_ranks: Literal["all", "cheap"] = "all",
        prune: bool = True,
        pairs_per_block: int | None = None,
    ) -> None:
        if top_k < 1 or (pairs_per_block is not None and pairs_per_block < 1):
            raise ConfigError(f"ranker: top_k is {top_k} and pairs_per_block {pairs_per_block}; both must be positive.")
        self.top_k = top_k
        self.unit_ranks = unit_ranks
        self.prune = prune
        self.pairs_per_block = pairs_per_block

    def ranked(self, matcher: Matcher) -> tuple[str, ...]:
        """Names of the scores that golds are ranked by."""
        return matcher.score_names if self.unit_ranks == "all" else matcher.cheap_score_names

    @torch.no_grad()
    def __call__(self, matcher: Matcher, mentions: States, gold: Tensor, index: EntityIndex) -> Ranking:
        """Rank the golds and find the top entities.

        Args:
            matcher: Scores mentions against entities.
            mentions: States of the mentions, float32.
            gold: Order numbers of each mention's golds, int64 ``[mentions, golds]``, padded with -1; each is ranked.
            index: All entities.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; the error carries the row of the mention in this block and
                the order number of the entity.
            DeviceMemoryError: Not even a small block fits the device's memory.
        """
        ranking = self._rank(matcher, mentions, gold, index)
        if not matcher.reranks:
            return ranking
        with _full_precision(index.device):
            matcher = in_float32(matcher)
            return ranking.reranked(rerank(matcher, mentions, ranking.top_entities, ranking.top_scores, index))

    def _rank(self, matcher: Matcher, mentions: States, gold: Tensor, index: EntityIndex) -> Ranking:
        processes = index.processes
        parts = of_every_process(processes, mentions, gold)
        sizes = [len(golds) for _, golds in parts]
        mentions, gold = joined([states for states, _ in parts]), torch.cat([golds for _, golds in parts])
        matcher = in_float32(matcher)
        prune = self.prune and matcher.monotone
        with _full_precision(index.device):
            search = Search(matcher, mentions, gold, index, self.ranked(matcher), self.top_k, prune)
            golds = search.share_golds(processes.run_together(search.score_golds, index.device))
            scan = processes.run_together(lambda: self._scan(search, golds), index.device)
            gold_ranks, top = search.merge(scan)
        last = torch.iinfo(torch.int64).max
        best = {name: ranks.masked_fill(ranks.eq(0), last).amin(dim=1) for name, ranks in gold_ranks.items()}
        ranks = {name: ranks.masked_fill(ranks.eq(last), 0) for name, ranks in best.items()}
        start = sum(sizes[: processes.rank])
        own = torch.arange(start, start + sizes[processes.rank], device=gold.device)
        return Ranking(ranks, top.order, top.scores, gold_ranks).at(own)

    def _scan(self, search: Search, golds: dict[str, Golds]) -> Scan:
        """Scan in blocks that fit the device's memory: smaller ones, once, where it has run out."""
        device = search.index.device
        pairs = self.pairs_per_block or _pairs_that_fit(device)
        try:
            return search.scan(golds, pairs)
        except torch.OutOfMemoryError:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        # Outside of the handler: the failed block's tensors are free by now.
        smaller = max(1, pairs // 8)
        try:
            return search.scan(golds, smaller)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{device} has no memory left to rank {len(search.gold)} mentions: {pairs} pairs at once are too many, "
                f"and so are {smaller}. Rank fewer mentions at once (--data.eval_batch_size), or keep the index in the "
                "host's memory (--model.index.storage host)."
            ) from error


def in_float32(matcher: Matcher) -> Matcher:
    """The matcher itself, or a copy if its weights are of another type: states are float32."""
    if all(weight.dtype == torch.float32 for weight in matcher.parameters()):
        return matcher
    return copy.deepcopy(matcher).float()


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 proper, whatever training allows itself or asks for: errors must stay below the search's tolerance."""
    allowed, usual = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)
        torch.set_default_dtype(usual)


def _pairs_that_fit(device: torch.device) -> int:
    if device.type != "cuda":
        return _PAIRS_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    return max(_PAIRS_ON_CPU, min(_PAIRS_ON_DEVICE, free // 4 // _BYTES_PER_PAIR))
