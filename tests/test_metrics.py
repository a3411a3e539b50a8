"""Metrics against a literal reference on sorted scores, over batches and over processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.metrics import HITS, HitsAtK, MeanRank, MeanReciprocalRank, rank_metrics
from tests.launch import FORK, needs_fork
from tests.reference import best_rank


def reference(ranks: list[int], num_entities: int) -> dict[str, float]:
    """The definitions of the metrics, literally."""
    mentions = len(ranks)
    result = {f"hits@{k}": len([r for r in ranks if r in range(1, k + 1)]) / mentions for k in HITS}
    result["mrr"] = sum(1 / r for r in ranks if r) / mentions
    result["mr"] = sum(r or num_entities + 1 for r in ranks) / mentions
    return result


def values(metrics) -> dict[str, float]:
    return {name.removeprefix("val/"): float(value) for name, value in metrics.compute().items()}


def test_against_brute_force_ranking():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 12, size=(200, 50)).astype(float)  # many ties
    golds = [list(generator.choice(50, size=generator.integers(0, 4), replace=False)) for _ in range(200)]
    ranks = [best_rank(row, gold) for row, gold in zip(scores, golds, strict=True)]
    metrics = rank_metrics("val/")
    metrics.update(torch.tensor(ranks), num_entities=50)
    assert values(metrics) == pytest.approx(reference(ranks, 50), rel=1e-6)


@settings(max_examples=50)
@given(
    batches=st.lists(st.lists(st.integers(0, 5000), max_size=20), min_size=1, max_size=8).filter(any),
    seed=st.randoms(),
)
def test_neither_batches_nor_order_matter(batches, seed):
    metrics = rank_metrics("val/")
    for batch in batches:
        metrics.update(torch.tensor(batch, dtype=torch.int64), num_entities=5000)
    ranks = [rank for batch in batches for rank in batch]
    split = values(metrics)
    assert split == pytest.approx(reference(ranks, 5000), rel=1e-6)

    seed.shuffle(ranks)
    whole = rank_metrics("val/")
    whole.update(torch.tensor(ranks), num_entities=5000)
    assert values(whole) == split  # exactly


def test_metrics_that_agree_on_the_first_batch_stay_separate():
    metrics = rank_metrics("val/")
    metrics.update(torch.tensor([1, 1]), num_entities=100)
    metrics.update(torch.tensor([2, 7]), num_entities=100)
    assert values(metrics) == pytest.approx(reference([1, 1, 2, 7], 100), rel=1e-6)


def test_constant_scorer_gains_nothing():
    """With equal scores everywhere the mean rank over all golds is the middle of the knowledge base."""
    entities = 101
    ranks = [best_rank(np.zeros(entities), [gold]) for gold in range(entities)]
    metrics = rank_metrics("val/")
    metrics.update(torch.tensor(ranks), num_entities=entities)
    result = values(metrics)
    assert result["mr"] == pytest.approx((entities + 1) / 2)
    for k in HITS:
        assert result[f"hits@{k}"] == pytest.approx(k / entities)


def test_mention_without_gold_counts_in_every_denominator():
    metrics = rank_metrics("val/")
    metrics.update(torch.tensor([1, 0]), num_entities=9)
    assert values(metrics) == pytest.approx({**{f"hits@{k}": 0.5 for k in HITS}, "mrr": 0.5, "mr": 5.5})


def test_reset_and_empty():
    metrics = rank_metrics("val/")
    metrics.update(torch.tensor([3]), num_entities=9)
    metrics.reset()
    metrics.update(torch.tensor([], dtype=torch.int64), num_entities=9)
    assert all(np.isnan(value) for value in values(metrics).values())


@pytest.mark.parametrize("metric", [HitsAtK(1), MeanReciprocalRank(), MeanRank()])
@pytest.mark.parametrize("bad", [-1, 11])
def test_rank_outside_of_the_knowledge_base(metric, bad):
    with pytest.raises(ValueError, match=rf"rank {bad} is outside 0 \.\. 10"):
        metric.update(torch.tensor([1, bad]), num_entities=10)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="integers"):
        MeanRank().update(torch.tensor([1.0]), num_entities=10)
    with pytest.raises(ValueError, match="at least 1"):
        HitsAtK(0)


def test_large_sums_keep_their_precision():
    """Twenty thousand mentions in a large knowledge base, where float32 running sums would drift."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(1, 160_934, (20_000,), generator=generator)
    metrics = rank_metrics("val/")
    for batch in ranks.split(7):
        metrics.update(batch, num_entities=160_933)
    exact = reference(ranks.tolist(), 160_933)
    assert values(metrics) == pytest.approx(exact, rel=2e-7)


def _process(rank: int, rendezvous: Path, ranks: list[int], results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    metrics = rank_metrics("val/")
    part = ranks[:5] if rank == 0 else ranks[5:]  # unequal parts
    for batch in torch.tensor(part).split(3):
        metrics.update(batch, num_entities=1000)
    results.put((rank, values(metrics)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@needs_fork
def test_two_processes_equal_one(tmp_path):
    ranks = [1, 2, 0, 7, 1000, 3, 3, 21, 20, 0, 1, 5, 11]
    assert FORK is not None
    results = FORK.SimpleQueue()
    processes = [
        FORK.Process(target=_process, args=(rank, tmp_path / "rendezvous", ranks, results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    one = rank_metrics("val/")
    one.update(torch.tensor(ranks), num_entities=1000)
    expected = values(one)
    assert expected == pytest.approx(reference(ranks, 1000), rel=1e-6)
    assert [dict([results.get()]) for _ in range(2)] in ([{0: expected}, {1: expected}], [{1: expected}, {0: expected}])


def test_names():
    metrics = rank_metrics("test/text/")
    metrics.update(torch.tensor([1]), num_entities=2)
    expected = ["hits@1", "hits@3", "hits@5", "hits@10", "hits@20", "mrr", "mr"]
    assert sorted(metrics.compute()) == sorted(f"test/text/{name}" for name in expected)
