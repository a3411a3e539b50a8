"""What the benchmark measures with: turns, memory, counts, and the machine's arithmetic."""

from __future__ import annotations

import torch

from mimic_pl.benchmark.counting import counting
from mimic_pl.benchmark.machine import arithmetic
from mimic_pl.benchmark.memory import peak_memory
from mimic_pl.benchmark.problem import random_problem
from mimic_pl.benchmark.timing import Timing, Work, ratio, time_interleaved
from mimic_pl.ranking import Ranker


def test_works_take_turns():
    calls = []
    works = {name: Work(lambda name=name: calls.append(name), 10) for name in "ab"}
    times = time_interleaved(works, rounds=3)
    assert calls == list("ab" * 4)  # once to warm up
    assert all(len(timing.rounds) == 3 and min(timing.rounds) > 0 for timing in times.values())


def test_a_ratio_is_of_the_medians_and_its_spread_of_single_rounds():
    found = ratio(Timing([2.0, 4.0, 9.0]), Timing([1.0, 2.0, 1.0]))
    assert found == (4.0, 2.0, 9.0)


def prepare(before, during):
    kept = torch.ones(before, dtype=torch.uint8)

    def run():
        return int(kept[0]) + int(torch.ones(during, dtype=torch.uint8)[0])

    return run


def test_memory_is_that_of_the_work_and_not_of_its_preparation():
    mega = 1 << 20
    peak = peak_memory(prepare, "cpu", 1, 300 * mega, 100 * mega)
    assert peak.result == 2
    assert peak.before > 300 * mega
    assert 100 * mega <= peak.increase < 140 * mega


def test_the_arithmetic_of_a_pair_at_published_sizes():
    problem = random_problem(2, 2, 2, seed=0, device="cpu")
    pair = arithmetic(problem.matcher, problem.states, problem.index.select(torch.arange(1)).states)
    assert pair.exponentials == 40 * 40
    # TGLU's Q K^T, w V and two products of the vectors; VDLU's ten; CMFU's one.
    assert pair.products == 2 * (96 * 40 * 40 + 40 * 96 + 96 + 512 + 10 * 96 + 96)


def test_counting_changes_no_rank_and_counts_what_bounds_leave_open():
    problem = random_problem(6, 80, 80, seed=1, device="cpu")
    matcher, count = counting(problem.matcher)
    mine = Ranker(unit_ranks="cheap", top_k=3)(matcher, problem.states, problem.gold, problem.index)
    expected = Ranker(unit_ranks="cheap", top_k=3)(problem.matcher, problem.states, problem.gold, problem.index)
    assert all(torch.equal(mine.ranks[name], expected.ranks[name]) for name in expected.ranks)
    assert 0 < count.pairs <= 6 * 80
    assert count.exact >= 6  # at least each mention's gold
    before = count.pairs
    Ranker(prune=False)(matcher, problem.states, problem.gold, problem.index)
    assert count.pairs == before + 6 * 80, "without pruning every pair is scored"
