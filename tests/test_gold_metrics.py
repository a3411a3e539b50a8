"""Recall over several golds, and metrics of golds seen and not seen in training, against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.metrics import HITS, GoldMetrics, HitsAtK, RecallAtK, rank_metrics

ENTITIES = 40
golds = st.lists(st.integers(1, ENTITIES) | st.none(), max_size=4)  # ranks; None: not in the knowledge base


def recall(mentions, k):
    shares = [sum(r is not None and r <= k for r in ranks) / len(ranks) if ranks else 0.0 for ranks in mentions]
    return sum(shares) / len(shares)


def tensors(mentions, width=4):
    known = [[r for r in ranks if r is not None] for ranks in mentions]
    return torch.tensor([ranks + [0] * (width - len(ranks)) for ranks in known]), torch.tensor(list(map(len, mentions)))


@settings(max_examples=60)
@given(st.lists(st.lists(golds, min_size=1, max_size=6), min_size=1, max_size=5), st.integers(1, ENTITIES))
def test_recall_is_the_mean_share_of_the_golds_however_batched(batches, k):
    split, whole = RecallAtK(k), RecallAtK(k)
    for batch in batches:
        split.update(*tensors(batch))
    mentions = [ranks for batch in batches for ranks in batch]
    whole.update(*tensors(mentions[::-1]))
    assert split.compute().item() == pytest.approx(recall(mentions, k), abs=1e-6)
    assert split.compute().item() == whole.compute().item()


@given(st.lists(st.integers(0, ENTITIES), min_size=1, max_size=30))
def test_recall_over_single_golds_is_hits(ranks):
    ranks = torch.tensor(ranks)
    for k in HITS:
        assert torch.equal(RecallAtK(k)(ranks[:, None], torch.ones_like(ranks)), HitsAtK(k)(ranks, ENTITIES))


def test_more_ranks_than_golds_are_rejected():
    with pytest.raises(ValueError, match="more ranks than golds"):
        RecallAtK(1).update(torch.tensor([[1, 2]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="at least 1"):
        RecallAtK(0)


def test_seen_and_unseen_metrics_are_those_of_their_mentions():
    ranks = torch.tensor([1, 7, 0, 3, 12, 1])
    seen = torch.tensor([1, 0, -1, 1, 0, 0])
    metrics = GoldMetrics("test", ["overall", "text"])
    for part in (slice(0, 4), slice(4, 6)):
        metrics.update({"overall": ranks[part], "text": ranks[part]}, {}, None, seen[part], ENTITIES)
    reported = metrics.compute()
    for group, number in (("seen", 1), ("unseen", 0)):
        alone = rank_metrics(f"test/{group}/")
        alone.update(ranks[seen == number], num_entities=ENTITIES)
        for name, value in alone.compute().items():
            assert torch.equal(reported.pop(name), value)
    assert reported == {"test/seen/mentions": 2, "test/unseen/mentions": 3}
    metrics.reset()
    assert metrics.compute() == {}


@pytest.mark.parametrize("seen", [[1, 1, 1], [0, 0, 0], [-1, 0, -1]])
def test_one_group_alone_is_not_reported(seen):
    metrics = GoldMetrics("test", ["overall"])
    metrics.update({"overall": torch.tensor([1, 2, 3])}, {}, None, torch.tensor(seen), ENTITIES)
    assert metrics.compute() == {}


@pytest.mark.filterwarnings("error")
def test_nothing_is_reported_for_single_golds_without_seen_flags():
    metrics = GoldMetrics("val", ["overall"])
    metrics.update({"overall": torch.tensor([1, 2])}, {"overall": torch.tensor([[1], [2]])}, None, None, ENTITIES)
    assert metrics.compute() == {}
