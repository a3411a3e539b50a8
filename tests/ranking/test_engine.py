"""Exact ranks and top-k against sorting the whole score matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import EntityIndex, Ranker
from mimic_pl.units import Matcher, published_units
from tests import reference

DIMS = FeatureDims(16, 96)


def table_index(scores: torch.Tensor) -> tuple[EntityIndex, dict, object]:
    """An index whose entities carry a column of a given score table, to rank any scores at all."""
    index = EntityIndex(scores.shape[1], dtype=scores.dtype)
    index.append({"table": {"column": scores.T.contiguous()}})
    mentions = {"table": {"row": torch.arange(len(scores))}}

    def score(mentions, entities):
        overall = entities["table"]["column"][:, mentions["table"]["row"]].T.clone()
        return {"overall": overall, "text": -overall}

    return index, mentions, score


def pad(golds: list[list[int]]) -> torch.Tensor:
    width = max(map(len, golds))
    return torch.tensor([g + [-1] * (width - len(g)) for g in golds], dtype=torch.int64).view(len(golds), width)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ranks_and_top_k_equal_one_sorted_list(data):
    """Few distinct scores, so that ties are everywhere; golds missing, single or several; any block size."""
    num_mentions = data.draw(st.integers(1, 5))
    num_entities = data.draw(st.integers(1, 30))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=num_entities, max_size=num_entities)
    scores = torch.tensor([data.draw(values) for _ in range(num_mentions)])
    golds = [
        data.draw(st.lists(st.integers(0, num_entities - 1), max_size=3, unique=True)) for _ in range(num_mentions)
    ]
    top_k = data.draw(st.integers(1, 12))
    index, mentions, score = table_index(scores)
    ranking = Ranker(top_k, pairs_per_block=data.draw(st.integers(1, 200)))(score, mentions, pad(golds), index)

    assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(scores, golds)
    assert ranking.ranks["text"].tolist() == reference.ranks_by_sorting(-scores, golds)
    order = [sorted(range(num_entities), key=lambda e, row=row: (-row[e], e))[:top_k] for row in scores.tolist()]
    assert ranking.top_entities.tolist() == order
    torch.testing.assert_close(ranking.top_scores["overall"], scores.gather(1, torch.tensor(order)))
    torch.testing.assert_close(ranking.top_scores["text"], -scores.gather(1, torch.tensor(order)))


def test_a_constant_scorer_gains_nothing():
    scores = torch.zeros(100, 50)
    index, mentions, score = table_index(scores)
    golds = torch.randint(0, 50, (100, 1), generator=torch.Generator().manual_seed(0))
    ranking = Ranker(pairs_per_block=700)(score, mentions, golds, index)
    assert ranking.ranks["overall"].tolist() == (golds[:, 0] + 1).tolist()


@pytest.mark.parametrize("pairs_per_block", [1, 7, 64, 10_000])
def test_block_size_and_mention_batches_change_no_rank_of_a_real_matcher(pairs_per_block):
    torch.manual_seed(0)
    matcher = Matcher(DIMS, published_units()).eval()
    mentions, entities = reference.random_features(9, DIMS), reference.random_features(37, DIMS)
    golds = torch.randint(0, 37, (9, 1))
    with torch.no_grad():
        index = EntityIndex(37)
        for start in range(0, 37, 10):
            index.append(matcher.entity(type(entities)(*(field[start : start + 10] for field in entities))))
        full = matcher.score(matcher.mention(mentions), matcher.entity(entities))
        rankings = [
            Ranker(pairs_per_block=pairs_per_block)(
                matcher.score,
                matcher.mention(type(mentions)(*(field[s : s + 4] for field in mentions))),
                golds[s : s + 4],
                index,
            )
            for s in range(0, 9, 4)
        ]
    for name, scores in full.items():
        ranks = [rank for ranking in rankings for rank in ranking.ranks[name].tolist()]
        assert ranks == reference.ranks_by_sorting(scores, golds.tolist()), name


def test_order_of_the_entities_changes_no_rank():
    torch.manual_seed(1)
    matcher = Matcher(DIMS, published_units()).eval()
    mentions, entities = reference.random_features(6, DIMS), reference.random_features(29, DIMS)
    golds = torch.randint(0, 29, (6, 1))
    order = torch.randperm(29)
    ranks = []
    with torch.no_grad():
        for features, gold in (
            (entities, golds),
            (type(entities)(*(field[order] for field in entities)), order.argsort()[golds]),
        ):
            index = EntityIndex(29)
            index.append(matcher.entity(features))
            ranking = Ranker(pairs_per_block=31)(matcher.score, matcher.mention(mentions), gold, index)
            ranks.append({name: rank.tolist() for name, rank in ranking.ranks.items()})
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_score_is_an_error_that_knows_its_mention_and_entity(value):
    scores = torch.zeros(3, 20)
    scores[2, 13] = value
    index, mentions, score = table_index(scores)
    with pytest.raises(NonFiniteScoreError, match="mention 2 .* entity 13") as caught:
        Ranker(pairs_per_block=15)(score, mentions, torch.tensor([[0], [1], [2]]), index)
    assert (caught.value.mention, caught.value.entity) == (2, 13)


def test_the_index_refuses_more_entities_than_announced_and_tells_its_size():
    index = EntityIndex(3, dtype=torch.bfloat16)
    states = {"text": {"global": torch.randn(2, 8), "mask": torch.ones(2, 4, dtype=torch.int64)}}
    index.append(states)
    assert len(index) == 2
    assert index.bytes_per_entity == 8 * 2 + 4 * 8
    with pytest.raises(ValueError, match="3 entities"):
        index.append(states)
