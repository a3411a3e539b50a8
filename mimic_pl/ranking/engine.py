"""Exact ranks and top-k over the whole knowledge base, in blocks: nothing of size mentions x entities is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError, DeviceMemoryError, NonFiniteScoreError
from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.index import Block, EntityIndex
from mimic_pl.ranking.states import pick
from mimic_pl.ranking.top import TopEntities, first_of_each_kind
from mimic_pl.units import Bounds, Matcher, States

OVERALL = "overall"

TOLERANCE = 2.0**-16
"""Differences up to this share of a block's largest score are settled in float64; rounding errors of float32 scores
are dozens of times smaller."""

_PAIRS_ON_CPU = 1 << 19
"""Pairs in a block on a CPU: what is kept of each pair, some dozens of numbers, stays near the caches."""

_PAIRS_ON_DEVICE = 1 << 22
"""Pairs in a block on another device at most; more fill it no better."""

_BYTES_PER_PAIR = 1024
"""Working memory of a pair on another device, generously."""

_ENTITIES_AT_MOST = 4096
"""Entities in a block at most, since a block's states are decoded: 80 MB in float32 at published sizes."""

_MANY = 0.3
"""Share of a block's pairs from which on it is faster to score all of them, in large products, than those chosen."""

_TIES = 4
"""Candidates for each place of the top lists from which on equals are sorted out before they are scored."""

_CHOSEN_ON_CPU = 128
"""Chosen pairs whose states, some 50 kB each, are copied at once on a CPU: what stays in its caches."""

_CHOSEN_ON_DEVICE = 1 << 14
"""Chosen pairs at once on another device: enough to fill it, below a gigabyte."""


class Ranking(NamedTuple):
    """Where the golds of a block of mentions stand among all entities, and who stands on top.

    Attributes:
        ranks: For ``overall`` and each unit that is ranked, the 1-based rank of the best-ranked gold, int64
            ``[mentions]``; 0 where the mention has no gold in the knowledge base.
        top_entities: Positions in the knowledge base of the top entities by overall score, best first, int64
            ``[mentions, k]``.
        top_scores: For ``overall`` and each unit, the scores of ``top_entities``, float32 ``[mentions, k]``.
        gold_ranks: Like ``ranks``, but of every gold, int64 ``[mentions, golds]``; 0 where there is none.
    """

    ranks: dict[str, Tensor]
    top_entities: Tensor
    top_scores: dict[str, Tensor]
    gold_ranks: dict[str, Tensor] = {}


class Ranker:
    """Ranks the whole knowledge base for a block of mentions.

    All entities stand in one total order: score descending, then position in the knowledge base. The rank of a gold is
    its place in that order, so top-k lists and ranks agree, and a constant scorer ranks the golds by their position,
    which gains it nothing. The scores that are ordered are those of float64 arithmetic on the states of the index,
    rounded to float32. They are computed where float32 leaves an order open, so that neither the size of the blocks,
    nor pruning, nor the number of processes changes a rank.

    Pruning: a pair is first bounded (see :meth:`~mimic_pl.units.Unit.bounds`), at a fraction of its cost. Where the
    bounds place it before or behind the gold and out of the top, it is never scored.

    A mention with several golds takes as much work as so many mentions: each gold is ranked on its own.

    Args:
        top_k: How many top entities are kept for each mention.
        unit_ranks: ``all`` also ranks by each unit's own score; ``cheap`` leaves out units whose scores are dear
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
            gold: Positions of each mention's golds in the knowledge base, int64 ``[mentions, golds]``, padded with -1;
                each is ranked.
            index: All entities.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; the error carries the row of the mention in this block and
                the position of the entity.
            DeviceMemoryError: Not even a small block fits the device's memory.
        """
        with _full_precision(index.device):
            return self._rank_or_shrink(matcher, mentions, gold, index)

    def _rank_or_shrink(self, matcher: Matcher, mentions: States, gold: Tensor, index: EntityIndex) -> Ranking:
        pairs = self.pairs_per_block or _pairs_that_fit(index.device)
        try:
            return self._rank(matcher, mentions, gold, index, pairs)
        except torch.OutOfMemoryError:
            if index.device.type == "cuda":
                torch.cuda.empty_cache()
        # Outside of the handler: the failed block's tensors are free by now.
        smaller = max(1, pairs // 8)
        try:
            return self._rank(matcher, mentions, gold, index, smaller)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{index.device} has no memory left to rank {len(gold)} mentions: {pairs} pairs at once are too many, "
                f"and so are {smaller}. Rank fewer mentions at once (--data.eval_batch_size), or keep the index in the "
                "host's memory (--model.indexer.place host)."
            ) from error

    def _rank(self, matcher: Matcher, mentions: States, gold: Tensor, index: EntityIndex, pairs: int) -> Ranking:
        prune = self.prune and matcher.monotone
        search = _Search(matcher, mentions, gold, index, self.ranked(matcher), self.top_k, prune)
        size = pairs // len(search.rows)
        if index.device.type == "cpu":
            size = min(size, _ENTITIES_AT_MOST)
        for start, stop, block in index.blocks(max(1, size)):
            search.look(block, torch.arange(start, stop, device=gold.device))
        return search.result()


class _Search:
    """One pass over the knowledge base for a block of mentions.

    It goes by rows of a mention and one of its golds, or none: as many as there are mentions, if none has several.
    """

    def __init__(
        self,
        matcher: Matcher,
        mentions: States,
        gold: Tensor,
        index: EntityIndex,
        ranked: tuple[str, ...],
        top_k: int,
        prune: bool,
    ) -> None:
        self.matcher = matcher
        self.ranked = ranked
        self.prune = prune
        if not gold.shape[1]:
            gold = gold.new_full((len(gold), 1), -1)
        known = gold.ge(0)
        known[:, 0] |= ~known.any(dim=1)
        self.gold = gold
        self.rows, self.columns = known.nonzero(as_tuple=True)  # mention, and which of its golds
        if len(self.rows) > len(gold):
            mentions = pick(mentions, self.rows)
        self.mentions = matcher.prepare(mentions) if prune else mentions
        self.exact = ExactScores(matcher, mentions)
        own = gold[self.rows, self.columns]
        self.in_kb = own.ge(0)
        self.golds = self._find_golds(own, index)
        self.ahead = {name: torch.zeros_like(own) for name in self.golds}
        self.top = TopEntities(len(own), min(top_k, len(index)), matcher.score_names, gold.device)

    def _find_golds(self, own: Tensor, index: EntityIndex) -> dict[str, _Gold]:
        """Each row's gold by each score."""
        rows = self.in_kb.nonzero()[:, 0]
        block = index.select(own[rows])
        _require_finite_states(block, own[rows], self.rows[rows])
        kinds = _with_overall(block.kinds)
        found: dict[str, _Gold] = {}
        for name, scores in self.exact(rows, block.states).items():
            # Without a gold nothing is counted: all scores lie behind +inf.
            score = torch.full(own.shape, torch.inf, device=own.device).index_put((rows,), scores)
            found[name] = _Gold(score, own, torch.zeros_like(own).index_put((rows,), kinds[name]))
        return found

    def look(self, block: Block, positions: Tensor) -> None:
        """Count a block's entities before the golds, and merge those on top."""
        _require_finite_states(block, positions)
        bounds = self._bounds(block)
        _require_finite(bounds, positions, self.rows)
        margins = _margins(bounds)
        dear = tuple(name for name in self.matcher.units if not bounds[name].exact)
        kinds = _with_overall(block.kinds)

        open_pairs: dict[str, Tensor] = {}
        for name in self.ranked:
            score = self.golds[name].score[:, None]
            lower, upper = bounds[name]
            before = lower > score + margins[name]
            self.ahead[name] += before.sum(dim=1)
            open_pairs[name] = (upper >= score - margins[name]) & ~before

        on_top = self._reach_for_top(bounds[OVERALL], margins[OVERALL], kinds[OVERALL])
        asked = on_top
        for name in self.ranked:
            if bounds[name].exact:
                rows, columns = open_pairs[name].nonzero(as_tuple=True)
                self._settle(name, rows, columns, block, kinds, positions)
            else:
                asked = asked | open_pairs[name]
        rows, columns = asked.nonzero(as_tuple=True)
        scores = self._scores(rows, columns, bounds, dear, block)
        for name in self.ranked:
            if bounds[name].exact:
                continue
            gold_score = self.golds[name].score[rows]
            of_name = open_pairs[name][rows, columns]
            before = of_name & (scores[name] > gold_score + margins[name])
            self.ahead[name].index_add_(0, rows, before.long())
            near = of_name & ~before & (scores[name] >= gold_score - margins[name])
            self._settle(name, rows[near], columns[near], block, kinds, positions)

        reach = on_top[rows, columns]
        rows, columns = rows[reach], columns[reach]
        self._merge(rows, columns, scores[OVERALL][reach], margins[OVERALL], block, kinds[OVERALL][columns], positions)

    def result(self) -> Ranking:
        """Ranks and top entities after all blocks."""
        gold_ranks = {
            name: torch.zeros_like(self.gold).index_put(
                (self.rows, self.columns), torch.where(self.in_kb, self.ahead[name] + 1, 0)
            )
            for name in self.ranked
        }
        last = torch.iinfo(torch.int64).max
        best = {name: ranks.masked_fill(ranks.eq(0), last).amin(dim=1) for name, ranks in gold_ranks.items()}
        first = torch.searchsorted(self.rows, torch.arange(len(self.gold), device=self.rows.device))
        return Ranking(
            {name: ranks.masked_fill(ranks.eq(last), 0) for name, ranks in best.items()},
            self.top.positions[first],
            {name: scores[first] for name, scores in self.top.scores.items()},
            gold_ranks,
        )

    def _bounds(self, block: Block) -> dict[str, Bounds]:
        if self.prune:
            return self.matcher.bounds(self.mentions, block.states)
        return {name: Bounds(score, score) for name, score in self.matcher.score(self.mentions, block.states).items()}

    def _reach_for_top(self, overall: Bounds, margin: Tensor, kinds: Tensor) -> Tensor:
        """Entities that may be among the top ones, bool ``[mentions, entities]``."""
        k = min(self.top.k, overall.lower.shape[1])
        self._threshold = self.top.last
        if k == self.top.k:
            # k entities whose lower bounds reach a score keep all below it out.
            self._threshold = torch.maximum(self._threshold, overall.lower.topk(k, dim=1).values[:, -1])
        reach = overall.upper >= (self._threshold - margin)[:, None]
        # One of the last entity's kind has the same score and comes later.
        return reach & (kinds != self.top.last_kind[:, None]) if self.top.positions[:, -1].ge(0).all() else reach

    def _merge(
        self,
        rows: Tensor,
        columns: Tensor,
        overall: Tensor,
        margin: Tensor,
        block: Block,
        kinds: Tensor,
        positions: Tensor,
    ) -> None:
        """Merge those of these pairs into the lists that may belong there."""
        table = overall.new_full((len(self.in_kb), len(positions)), -torch.inf).index_put((rows, columns), overall)
        if table.shape[1] >= self.top.k:
            self._threshold = torch.maximum(self._threshold, table.topk(self.top.k, dim=1).values[:, -1])
        reach = overall >= (self._threshold - margin)[rows]
        rows, columns, kinds = rows[reach], columns[reach], kinds[reach]
        if len(rows) > _TIES * self.top.positions.numel():
            # Many ties: of one kind only the first have a place in the list.
            first = first_of_each_kind(rows, kinds, self.top.k)
            rows, columns, kinds = rows[first], columns[first], kinds[first]
        self.top.merge(rows, positions[columns], kinds, self.exact(rows, pick(block.states, columns)))

    def _scores(
        self, rows: Tensor, columns: Tensor, bounds: dict[str, Bounds], dear: tuple[str, ...], block: Block
    ) -> dict[str, Tensor]:
        """Float32 scores of chosen pairs by name, ``[pairs]``."""
        scores = {name: bounds[name].lower[rows, columns] for name in self.matcher.units}
        if len(rows) > _MANY * bounds[OVERALL].lower.numel():
            scored = self.matcher.score(self.mentions, block.states)
            return {name: score[rows, columns] for name, score in scored.items()}
        if dear:
            at_once = _CHOSEN_ON_CPU if rows.device.type == "cpu" else _CHOSEN_ON_DEVICE
            parts = [
                self.matcher.pairs(pick(self.mentions, rows[part]), pick(block.states, columns[part]), dear)
                for part in torch.split(torch.arange(len(rows), device=rows.device), at_once)
            ]
            scores |= {name: torch.cat([part[name] for part in parts]) for name in dear}
        return {OVERALL: self.matcher.combine(scores), **scores}

    def _settle(
        self, name: str, rows: Tensor, columns: Tensor, block: Block, kinds: dict[str, Tensor], positions: Tensor
    ) -> None:
        """Count those of these pairs that come before the gold, by the scores that define the order."""
        gold = self.golds[name]
        position = positions[columns]
        # Of the gold's kind: a tie.
        same = kinds[name][columns] == gold.kind[rows]
        before = same & (position < gold.position[rows])
        self.ahead[name].index_add_(0, rows, before.long())
        rows, columns, position = rows[~same], columns[~same], position[~same]
        if not len(rows):
            return
        names = None if name == OVERALL else (name,)
        score, gold_score = self.exact(rows, pick(block.states, columns), names)[name], gold.score[rows]
        before = (score > gold_score) | ((score == gold_score) & (position < gold.position[rows]))
        self.ahead[name].index_add_(0, rows, before.long())


class _Gold(NamedTuple):
    """Each row's gold by one score, all ``[rows]``."""

    score: Tensor
    position: Tensor
    kind: Tensor


def _with_overall(kinds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kinds for the overall score, too: those of all units taken together."""
    overall: Tensor | None = None
    for kind in kinds.values():
        overall = kind if overall is None else overall * 0x5DEECE66D + kind
    assert overall is not None, "a model has units"
    return {OVERALL: overall, **kinds}


def _margins(bounds: dict[str, Bounds]) -> dict[str, Tensor]:
    """How close two float32 scores may be without their order being sure, a scalar by name."""
    scale = {
        name: torch.maximum(bound.lower.abs().amax(), bound.upper.abs().amax()) * TOLERANCE
        for name, bound in bounds.items()
    }
    return {**scale, OVERALL: torch.stack(list(scale.values())).amax()}


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in float32 proper, whatever training allows itself: their errors must stay below :data:`TOLERANCE`."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def _pairs_that_fit(device: torch.device) -> int:
    if device.type != "cuda":
        return _PAIRS_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    return max(_PAIRS_ON_CPU, min(_PAIRS_ON_DEVICE, free // 4 // _BYTES_PER_PAIR))


def _require_finite_states(block: Block, positions: Tensor, mentions: Tensor | None = None) -> None:
    if block.finite.all():
        return
    column = int((~block.finite).nonzero()[0, 0])
    mention = 0 if mentions is None else int(mentions[column])
    entity = int(positions[column])
    raise NonFiniteScoreError(
        f"What the units keep of entity {entity} is not finite.", OVERALL, mention, entity, float("nan")
    )


def _require_finite(bounds: dict[str, Bounds], positions: Tensor, mentions: Tensor) -> None:
    for name, bound in bounds.items():
        for block in {id(tensor): tensor for tensor in bound}.values():
            # One pass and one number to look at: a sum is finite unless a term is not (or all are near the largest
            # float).
            if torch.isfinite(block.sum()) or torch.isfinite(block).all():
                continue
            row, column = (~torch.isfinite(block)).nonzero()[0].tolist()
            value, mention, entity = block[row, column].item(), int(mentions[row]), int(positions[column])
            raise NonFiniteScoreError(
                f"The {name!r} score of mention {mention} of this block with entity {entity} is {value}.",
                score=name,
                mention=mention,
                entity=entity,
                value=value,
            )
