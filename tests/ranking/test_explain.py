"""The explanation of a rank, against scores and ranks computed for all entities."""

import pytest
import torch

from mimic_pl.errors import DataError
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex, explain
from mimic_pl.units import Matcher, published_units
from tests.reference import random_features

DIMS = FeatureDims(16, 96)
torch.manual_seed(0)
MENTIONS, ENTITIES = random_features(1, DIMS), random_features(30, DIMS)


@pytest.fixture(scope="module")
def matcher():
    torch.manual_seed(0)
    return Matcher(DIMS, published_units()).eval()


@pytest.fixture(scope="module")
def index(matcher):
    index = MemoryIndex("cpu", capacity=30)
    with torch.no_grad():
        index.add([f"Q{n}" for n in range(30)], matcher.entity(ENTITIES))
    return index


@torch.no_grad()
@pytest.mark.parametrize("entity", [0, 13, 29])
def test_scores_bounds_ranks_and_competitors(matcher, index, entity):
    mention = matcher.mention(MENTIONS)
    explanation = explain(matcher, mention, f"Q{entity}", index, top_k=4)
    scores = matcher.score(mention, matcher.entity(ENTITIES))
    assert list(explanation.scores) == ["overall", "text", "vision", "cross_modal"]
    for name, found in explanation.scores.items():
        own = scores[name][0]
        assert found.score == pytest.approx(float(own[entity]), abs=1e-5)
        assert found.rank == 1 + int((own > own[entity]).sum())
        assert found.lower - 1e-5 <= found.score <= found.upper + 1e-5
    top = [n for n in scores["overall"][0].argsort(descending=True).tolist() if n != entity][:4]
    assert list(explanation.competitors) == [f"Q{n}" for n in top]
    for n, competitor in zip(top, explanation.competitors.values(), strict=True):
        assert competitor == pytest.approx({name: float(own[0, n]) for name, own in scores.items()}, abs=1e-5)


@torch.no_grad()
def test_it_prints_as_two_tables(matcher, index):
    explanation = explain(matcher, matcher.mention(MENTIONS), "Q13", index, top_k=2)
    printed = str(explanation).splitlines()
    assert printed[0] == f"Q13: rank {explanation.scores['overall'].rank} of 30 by overall score"
    assert printed[2].split() == ["score", "rank", "value", "lower", "bound", "upper", "bound"]
    assert printed[-3].split() == ["entity", "overall", "text", "vision", "cross_modal"]
    first = next(iter(explanation.competitors))
    lead = explanation.competitors[first]["overall"] - explanation.scores["overall"].score
    assert printed[-2].split()[:2] == [first, f"{lead:+.4f}"]


@torch.no_grad()
def test_ties_are_explained(matcher):
    states = matcher.entity(ENTITIES.rows(torch.tensor([3, 3, 3, 7])))
    index = MemoryIndex("cpu", capacity=4)
    index.add(["a", "b", "c", "d"], states)
    explanation = explain(matcher, matcher.mention(MENTIONS), "b", index)
    ahead = list(explanation.competitors)
    assert [id for id in ahead if id != "d"] == ["a", "c"]
    assert explanation.scores["overall"].rank == 2 + (ahead[0] == "d")
    assert str(explanation).endswith("Entities of equal score are in the order of their order numbers.")


@torch.no_grad()
def test_an_unknown_entity(matcher, index):
    with pytest.raises(DataError, match="no entity 'Q99'"):
        explain(matcher, matcher.mention(MENTIONS), "Q99", index)
