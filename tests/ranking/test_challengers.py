"""Entities that may reach a score, against all scores in float64: a proof is never wrong."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex, challengers
from mimic_pl.units import Matcher, published_units
from tests import reference
from tests.ranking.tables import add, table_matcher, table_states


class Unweighted(Matcher):
    """A matcher whose overall score is not monotone, so that bounds say nothing."""

    monotone = False

    def combine(self, scores):
        return scores["expensive"] - scores["cheap"]


@settings(max_examples=150)
@given(st.data())
def test_every_entity_that_reaches_the_score_is_found(data):
    num_mentions, num_entities = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=num_entities, max_size=num_entities)
    tables = {name: torch.tensor([data.draw(values) for _ in range(num_mentions)]) for name in ("expensive", "cheap")}
    kind = data.draw(st.sampled_from([Matcher, Unweighted]))
    matcher = table_matcher({"expensive": data.draw(st.sampled_from([0.0, 0.3, 3.0])), "cheap": None}, kind)
    index, mentions = table_states(tables)
    scores = matcher.combine(tables)
    least = scores.gather(1, torch.randint(num_entities, (num_mentions, 1)))[:, 0]
    rows, order = challengers(matcher, mentions, index, least, data.draw(st.integers(1, 250)))

    found = torch.zeros_like(scores, dtype=torch.bool)
    found[rows, order] = True
    assert len(rows) == found.sum()  # each once
    assert found[scores >= least[:, None]].all()
    if kind is Unweighted:
        torch.testing.assert_close(found, scores >= least[:, None])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_first_without_challengers_is_the_exact_first(dtype):
    """Candidates that are chosen at random, most of them not the best: what is proven is right, and some is proven."""
    torch.manual_seed(5)
    dims = FeatureDims(16, 8)
    matcher = Matcher(dims, published_units()).eval()
    with torch.no_grad():
        index = MemoryIndex(dtype=dtype)
        add(index, matcher.entity(reference.random_features(300, dims, tokens=6)))
        mentions = matcher.mention(reference.random_features(40, dims, tokens=6))
        block = next(order_and_block[1] for order_and_block in index.blocks(300))
        double = matcher.double()
        sides = (
            {unit: {name: tensor.double() for name, tensor in state.items()} for unit, state in side.items()}
            for side in (mentions, block.states)
        )
        scores = double.score(*sides)["overall"]
        matcher.float()
    best = scores.argmax(dim=1)
    candidates = torch.stack([torch.randperm(300)[:60] for _ in range(40)])
    candidates[::2, 0] = best[::2]  # half of the lists have the best one
    of_candidates = scores.gather(1, candidates)
    first = candidates.gather(1, of_candidates.argmax(dim=1, keepdim=True))[:, 0]
    rows, order = challengers(matcher, mentions, index, of_candidates.amax(dim=1).float())
    others = ~(candidates[rows] == order[:, None]).any(dim=1)
    proven = torch.bincount(rows[others], minlength=40).eq(0)
    assert (first[proven] == best[proven]).all()
    assert not proven[1::2][first[1::2] != best[1::2]].any()
    assert proven.sum() > 3


def test_states_that_are_not_finite_are_an_error():
    index, mentions = table_states({"expensive": torch.tensor([[0.0, torch.nan]]), "cheap": torch.zeros(1, 2)})
    matcher = table_matcher({"expensive": 0.3, "cheap": None})
    with pytest.raises(NonFiniteScoreError):
        challengers(matcher, mentions, index, torch.zeros(1))
