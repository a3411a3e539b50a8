"""Floors of the top lists against all scores in float64: enough entities reach them, whatever the vectors say."""

import pytest
import torch

from mimic_pl.benchmark.counting import counting
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex, Ranker
from mimic_pl.ranking.floor import floor
from mimic_pl.units import TGLU, Matcher, published_units
from tests import reference
from tests.ranking.tables import add, table_matcher, table_states

DIMS = FeatureDims(16, 8)
K = 3


class Misled(TGLU):
    """Vectors that promise the most of the worst entities."""

    def key_vector(self, entities):
        return -100 * super().key_vector(entities)


def problem(text, copies=1):
    """A matcher, states of 40 mentions, an index with ``copies`` of each of 300 entities, and all float64 scores."""
    torch.manual_seed(7)
    matcher = Matcher(DIMS, {**published_units(), "text": text}).eval()
    with torch.no_grad():
        index = MemoryIndex()
        entities = matcher.entity(reference.random_features(300, DIMS, tokens=6))
        for _ in range(copies):
            add(index, entities)
        mentions = matcher.mention(reference.random_features(40, DIMS, tokens=6))
        sides = (
            {unit: {name: tensor.double() for name, tensor in state.items()} for unit, state in side.items()}
            for side in (mentions, entities)
        )
        scores = matcher.double().score(*sides)["overall"].repeat(1, copies)
    return matcher.float(), mentions, index, scores


@pytest.mark.parametrize("text", [TGLU, Misled])
@torch.no_grad()
def test_enough_entities_reach_the_floor(text):
    matcher, mentions, index, scores = problem(text)
    floors = floor(matcher, mentions, index, K, 70)
    assert floors is not None
    reaching = scores.ge(floors[:, None]).sum(dim=1)
    assert reaching.min() >= K
    assert (reaching.double().mean() < 2 * K) == (text is TGLU), "good vectors make a floor that is nearly the best"


@pytest.mark.parametrize("text", [TGLU, Misled])
@pytest.mark.parametrize("copies", [1, 5])
def test_a_floor_changes_no_rank_and_no_top_entity(text, copies):
    matcher, mentions, index, _ = problem(text, copies)
    golds = torch.randint(len(index), (40, 1))
    expected, found = (
        Ranker(K, prune=prune, pairs_per_block=pairs)(matcher, mentions, index, golds)
        for prune, pairs in ((False, 40 * 1000), (True, 40 * 70))
    )
    assert torch.equal(found.top_entities, expected.top_entities)
    for name, ranks in expected.ranks.items():
        assert torch.equal(found.ranks[name], ranks), name
        assert torch.equal(found.top_scores[name], expected.top_scores[name]), name


def test_a_floor_saves_attention(monkeypatch):
    scored = []
    for mentions_needed in (1, 1000):
        monkeypatch.setattr("mimic_pl.ranking.floor._MENTIONS", mentions_needed)
        matcher, mentions, index, _ = problem(TGLU)
        matcher, count = counting(matcher)
        Ranker(K, "cheap", pairs_per_block=40 * 30)(matcher, mentions, index)
        scored.append(count.pairs + count.exact)
    assert scored[0] < scored[1]


@torch.no_grad()
def test_there_is_no_floor_without_vectors_or_where_it_would_cost_more_than_it_saves(monkeypatch):
    index, mentions = table_states({"text": torch.randn(40, 300)})
    assert floor(table_matcher({"text": 0.3}), mentions, index, K, 70) is None
    matcher, mentions, index, _ = problem(TGLU)
    assert floor(matcher, mentions, index, 0, 70) is None
    assert floor(matcher, mentions, index, 100, 70) is None, "a list of a third of the entities"
    few = {unit: {name: tensor[:3] for name, tensor in state.items()} for unit, state in mentions.items()}
    assert floor(matcher, few, index, K, 70) is None, "three mentions"
    monkeypatch.setattr(MemoryIndex, "on_device", False)
    assert floor(matcher, mentions, index, K, 70) is None, "reading the entities costs more"
