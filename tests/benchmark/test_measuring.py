"""How the benchmark measures: interleaved timing, peak memory, counted pairs, and arithmetic."""

from __future__ import annotations

import pytest
import torch

from mimic_pl.benchmark.counting import counting
from mimic_pl.benchmark.machine import arithmetic
from mimic_pl.benchmark.memory import peak_memory
from mimic_pl.benchmark.problem import random_problem
from mimic_pl.benchmark.timing import Timing, Work, ratio, time_interleaved
from mimic_pl.ranking import Ranker


def test_workloads_take_turns():
    calls = []
    workloads = {name: Work(lambda name=name: calls.append(name), 10) for name in "ab"}
    times = time_interleaved(workloads, rounds=3)
    assert calls == list("ab" * 4)  # the first is the warm-up
    assert all(len(timing.rounds) == 3 and min(timing.rounds) > 0 for timing in times.values())


def test_a_ratio_is_of_medians_and_its_range_of_single_rounds():
    found = ratio(Timing([2.0, 4.0, 9.0]), Timing([1.0, 2.0, 1.0]))
    assert found == (4.0, 2.0, 9.0)


def prepare(before, during):
    kept = torch.ones(before, dtype=torch.uint8)

    def run():
        return int(kept[0]) + int(torch.ones(during, dtype=torch.uint8)[0])

    return run


@pytest.mark.slow
def test_peak_memory_excludes_the_preparation():
    megabyte = 1 << 20
    peak = peak_memory(prepare, "cpu", 1, 300 * megabyte, 100 * megabyte)
    assert peak.result == 2
    assert peak.before > 300 * megabyte
    assert 100 * megabyte <= peak.increase < 140 * megabyte


def test_the_arithmetic_of_a_pair_at_published_sizes():
    problem = random_problem(2, 2, 2, seed=0, device="cpu")
    pair = arithmetic(problem.matcher, problem.states, problem.index.select(torch.arange(1)).states)
    assert pair.exponentials == 40 * 40
    # TGLU: Q K^T, w V and two dot products; VDLU: ten dot products; CMFU: one.
    assert pair.products == 2 * (96 * 40 * 40 + 40 * 96 + 96 + 512 + 10 * 96 + 96)


def test_counting_changes_no_rank_and_counts_the_pairs_that_bounds_do_not_decide():
    problem = random_problem(6, 80, 80, seed=1, device="cpu")
    matcher, count = counting(problem.matcher)
    counted = Ranker(unit_ranks="cheap", top_k=3)(matcher, problem.states, problem.index, problem.gold)
    expected = Ranker(unit_ranks="cheap", top_k=3)(problem.matcher, problem.states, problem.index, problem.gold)
    assert all(torch.equal(counted.ranks[name], expected.ranks[name]) for name in expected.ranks)
    assert 0 < count.pairs <= 6 * 80
    assert count.exact >= 6  # at least the gold of each mention
    before = count.pairs
    Ranker(prune=False)(matcher, problem.states, problem.index, problem.gold)
    assert count.pairs == before + 6 * 80, "without pruning every pair is scored"
