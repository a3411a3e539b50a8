"""Ranking: time per pair against the published order and the machine's limit, and agreement of ranks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mimic_pl.benchmark import literal
from mimic_pl.benchmark.counting import counting
from mimic_pl.benchmark.machine import arithmetic, limit, machine_works
from mimic_pl.benchmark.problem import MENTIONS_AT_ONCE, Problem, in_dtype, random_problem, rows, run_problem
from mimic_pl.benchmark.report import Line, Row, fact, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, time_interleaved
from mimic_pl.features import Features
from mimic_pl.ranking import EntityIndex, IndexDtype, Ranker
from mimic_pl.units import Matcher, States

DTYPES: tuple[IndexDtype, ...] = ("float32", "bfloat16", "int8", "int4")
HITS = (1, 3, 5, 10, 20)
OVERALL = "overall"
LITERAL = "published order"

Ranks = dict[str, Tensor]


def ranking(settings: Settings) -> Row:
    """Measure ranking of random states at published sizes."""
    mentions = settings.mentions or settings.size(256, 24)
    entities = settings.entities or settings.size(8192, 150)
    problem = random_problem(mentions, entities, settings.size(1000, 100), settings.seed, settings.device)
    return _measured(problem, settings, "Ranking, random states at published sizes")


def trained(settings: Settings) -> Row:
    """Measure ranking of a trained run's model on its data."""
    assert settings.run is not None
    problem = run_problem(
        settings.run,
        settings.mentions or settings.size(2048, 24),
        settings.entities,
        settings.inflate,
        settings.size(1000, 100),
        settings.seed,
        settings.device,
    )
    return _measured(problem, settings, f"Ranking with a trained model: {problem.name}")


def _measured(problem: Problem, settings: Settings, title: str) -> Row:
    indices = {dtype: problem.index if dtype == "float32" else in_dtype(problem.index, dtype) for dtype in DTYPES}
    lines, limits = _speed(problem, indices, settings)
    agreement, changed = _agreement(problem, indices, settings)
    return {
        "title": title,
        "setting": {
            "mentions": len(problem.gold),
            "at once": min(MENTIONS_AT_ONCE, len(problem.gold)),
            "entities": len(problem.index),
            "rounds": settings.num_rounds,
        },
        "lines": [*lines, *changed],
        "limit": limits,
        "checks": {**_identity(problem, settings), **_whole(problem, settings), **agreement},
    }


def _speed(
    problem: Problem, indices: dict[IndexDtype, EntityIndex], settings: Settings
) -> tuple[list[Line], dict[str, float]]:
    """Times of ranking, of the published order and of the machine's limit."""
    matcher, device = problem.matcher, settings.device
    mentions = slice(0, MENTIONS_AT_ONCE)
    states, gold = rows(problem.states, mentions), problem.gold[mentions]
    # Without pruning the time per pair is constant, so some of the entities are enough.
    few = torch.arange(min(len(problem.index), settings.size(8192, 150)))
    heads = {dtype: in_dtype(index, dtype, few) if len(few) < len(index) else index for dtype, index in indices.items()}
    head_gold = torch.where(gold < len(few), gold, -1)

    def ours(index: EntityIndex, golds: Tensor, ranker: Ranker, side: States = states, by: Matcher = matcher) -> Work:
        return Work(lambda: ranker(by, side, index, golds), len(golds) * len(index))

    works = machine_works(device, settings.quick)
    sides = (
        _head(problem.mentions, literal.MENTIONS_AT_ONCE),
        _head(problem.sample_features, settings.size(2, 1) * literal.ENTITIES_AT_ONCE),
    )
    pairs = math.prod(len(side.text_global) for side in sides)
    works[LITERAL] = Work(_without_grad(lambda: literal.scores(matcher, *sides, device=device)), pairs)
    for dtype in DTYPES:
        works[f"all, {dtype}"] = ours(heads[dtype], head_gold, Ranker(prune=False))
        works[f"pruned, {dtype}"] = ours(indices[dtype], gold, Ranker(unit_ranks="cheap"))
    works["pruned, unit ranks"] = ours(indices["float32"], gold, Ranker())
    works["pruned, top 10"] = ours(indices["float32"], torch.full_like(gold, -1), Ranker())
    with torch.no_grad():
        normed = literal.normed(matcher, sides[0]), literal.normed(matcher, sides[1])
    for name in matcher.units:
        alone = _alone(matcher, name)
        index = in_dtype(heads["float32"], "float32", unit=name)
        works[f"unit {name}"] = ours(index, head_gold, Ranker(prune=False), {name: states[name]}, alone)
        by_unit = partial(literal.scores, matcher, *normed, only=name)
        works[f"{LITERAL} {name}"] = Work(_without_grad(by_unit), pairs)

    times = time_interleaved(works, settings.num_rounds, device)
    pair = arithmetic(matcher, states, problem.index.select(torch.arange(1)).states)
    bound = limit(pair, times)
    lines = [
        timed(f"every pair scored, {dtype}", times[f"all, {dtype}"], LITERAL, times[LITERAL], "pair")
        for dtype in DTYPES
    ]
    for name, unit in matcher.units.items():
        label = f"every pair scored, {name} ({type(unit).__name__}) alone"
        lines.append(timed(label, times[f"unit {name}"], LITERAL, times[f"{LITERAL} {name}"], "pair"))
    for dtype in DTYPES:
        lines.append(
            timed(f"pruned, overall and top 10, {dtype}", times[f"pruned, {dtype}"], LITERAL, times[LITERAL], "pair")
        )
    lines.append(
        timed("pruned, units' ranks too, float32", times["pruned, unit ranks"], LITERAL, times[LITERAL], "pair")
    )
    lines.append(timed("pruned, top 10 alone, float32", times["pruned, top 10"], LITERAL, times[LITERAL], "pair"))
    lines.append(timed("the machine's limit, float32", bound, "every pair scored", times["all, float32"], "pair"))
    for ranks, what in (("cheap", "overall and top 10"), ("all", "units' ranks too")):
        scored, exact = _scored_fractions(problem, mentions, ranks)
        lines.append(fact(f"pairs that needed attention, pruned, {what}", 100 * scored, "%"))
        lines.append(fact(f"golds, top entities and near ties in float64, pruned, {what}", 100 * exact, "%"))
    reached = {
        f"fraction of the limit, every pair scored ({power})": limit(pair, times, power).median
        / times["all, float32"].median
        for power in ("exp2", "exp")
    }
    lines += [fact(name, 100 * share, "%") for name, share in reached.items()]
    return lines, {
        "products per pair": pair.products,
        "exponentials per pair": pair.exponentials,
        "float32 products per second": 1 / times["product"].median,
        "exponentials to base e per second": 1 / times["exp"].median,
        "exponentials to base 2 per second": 1 / times["exp2"].median,
        **reached,
    }


def _scored_fractions(problem: Problem, mentions: slice, unit_ranks: Any) -> tuple[float, float]:
    """Fractions of the pairs whose attention was computed in float32, and that were scored in float64."""
    matcher, count = counting(problem.matcher)
    gold = problem.gold[mentions]
    Ranker(unit_ranks=unit_ranks)(matcher, rows(problem.states, mentions), problem.index, gold)
    pairs = len(gold) * len(problem.index)
    return count.pairs / pairs, count.exact / pairs


@torch.no_grad()
def _identity(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Ranks among the sampled entities against those of the published order in float64."""
    count = min(len(problem.gold), settings.size(100, 24))
    mentions, (index, gold) = _head(problem.mentions, count), problem.sampled()
    gold = gold[:count]
    double = copy.deepcopy(problem.matcher).double()
    sides = mentions.to(torch.float64), problem.sample_features.to(torch.float64)
    reference = literal.scores(double, *sides, device=settings.device)
    expected = {name: _ranks(scores, gold) for name, scores in reference.items()}
    published = literal.scores(problem.matcher, mentions, problem.sample_features, device=settings.device)
    checks: dict[str, Any] = {
        "ranks compared with the published order in float64": count * len(expected),
        "differing ranks, published order in float32": _differing(
            {name: _ranks(scores, gold) for name, scores in published.items()}, expected
        ),
    }
    for prune in (False, True):
        ranks = Ranker(prune=prune)(problem.matcher, rows(problem.states, slice(0, count)), index, gold).ranks
        checks[f"differing ranks, {'pruned' if prune else 'every pair scored'}"] = _differing(ranks, expected)
    return checks


def _whole(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Ranks and top entities over the whole knowledge base, with every pair scored and with pruning."""
    count = max(1, min(len(problem.gold), settings.size(1 << 20, 1 << 16) // len(problem.index)))
    states, gold = rows(problem.states, slice(0, count)), problem.gold[:count]
    full, pruned = (Ranker(prune=prune)(problem.matcher, states, problem.index, gold) for prune in (False, True))
    return {
        "ranks compared over the whole knowledge base": count * len(full.ranks),
        "differing ranks, pruned against every pair scored": _differing(pruned.ranks, full.ranks),
        "differing top entities": int((pruned.top_entities != full.top_entities).sum()),
    }


def _agreement(
    problem: Problem, indices: dict[IndexDtype, EntityIndex], settings: Settings
) -> tuple[dict[str, Any], list[Line]]:
    """Changes of H@k and ranks in the smaller dtypes."""
    # A number of mentions that takes some seconds.
    count = min(len(problem.gold), max(MENTIONS_AT_ONCE, settings.size(1 << 23, 1 << 16) // len(problem.index)))
    ranks = {dtype: _overall_ranks(problem, index, count) for dtype, index in indices.items()}
    exact, lines = ranks["float32"], []
    checks: dict[str, Any] = {"mentions compared between dtypes": count}
    for dtype in DTYPES[1:]:
        shares = {k: ((ranks[dtype] <= k) != (exact <= k)).double().mean().item() for k in HITS}
        unchanged = 1 - sum(shares.values()) / len(shares)
        lines.append(fact(f"hits of H@1..20 unchanged in {dtype}", 100 * unchanged, "%"))
        checks |= {f"fraction of hits of H@{k} changed in {dtype}": share for k, share in shares.items()}
        checks[f"fraction of overall ranks unchanged in {dtype}"] = (ranks[dtype] == exact).double().mean().item()
    return checks, lines


def _overall_ranks(problem: Problem, index: EntityIndex, mentions: int) -> Tensor:
    ranker, parts = Ranker(unit_ranks="cheap"), []
    for start in range(0, mentions, MENTIONS_AT_ONCE):
        part = slice(start, min(start + MENTIONS_AT_ONCE, mentions))
        parts.append(ranker(problem.matcher, rows(problem.states, part), index, problem.gold[part]).ranks[OVERALL])
    return torch.cat(parts)


def _ranks(scores: Tensor, gold: Tensor) -> Tensor:
    """Ranks of the best-ranked golds, by sorting by descending score, then position."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter(
        1, order, torch.arange(1, order.shape[1] + 1, device=order.device).expand_as(order)
    )
    last = torch.iinfo(torch.int64).max
    return ranks.gather(1, gold.clamp_min(0)).masked_fill(gold < 0, last).amin(dim=1)


def _differing(ranks: Ranks, expected: Ranks) -> int:
    return sum(int((ranks[name] != expected[name]).sum()) for name in expected)


def _alone(matcher: Matcher, name: str) -> Matcher:
    """A matcher with only this unit."""
    unit: Any = matcher.units[name]
    alone = Matcher(unit.dims, {name: lambda _: unit})
    return alone.to(next(unit.parameters()).device)


def _head(features: Features, count: int) -> Features:
    return features.rows(slice(count))


def _without_grad(function: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(function)
