"""The lexical unit and the weighted matcher, against literal sums."""

import pytest
import torch
from torch import nn

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex, Ranker
from mimic_pl.units import TGLU, GlobalCosine, Lexical, Matcher, WeightedMatcher
from tests import reference
from tests.ranking.tables import add

DIMS = FeatureDims(text=12, image=10)


def features(count, seed, terms=7, vocabulary=20):
    generator = torch.Generator().manual_seed(seed)
    hashes = torch.randint(2**63 - 1, (vocabulary,), generator=torch.Generator().manual_seed(0))  # as a lexicon's
    ids = torch.stack([hashes[torch.randperm(vocabulary, generator=generator)[:terms]] for _ in range(count)])
    weights = torch.rand(count, terms, generator=generator) * (torch.rand(count, terms, generator=generator) > 0.4)
    torch.manual_seed(seed)
    return reference.random_features(count, DIMS)._replace(extra={"lexical.ids": ids, "lexical.weights": weights})


def literal(mention, entity):
    """The overlap of two texts, term by term."""
    known = dict(zip(entity["lexical.ids"].tolist(), entity["lexical.weights"].tolist(), strict=True))
    return sum(
        weight * known.get(term, 0.0)
        for term, weight in zip(mention["lexical.ids"].tolist(), mention["lexical.weights"].tolist(), strict=True)
    )


def test_scores_and_pairs_are_the_overlap():
    unit = Lexical(DIMS, scale=2.5)
    mentions, entities = features(6, 0), features(9, 1, terms=11)
    expected = torch.tensor(
        [[2.5 * literal(mentions.rows(m).extra, entities.rows(e).extra) for e in range(9)] for m in range(6)]
    )
    torch.testing.assert_close(unit(mentions, entities), expected)
    pairs = unit.pairs(unit.mention(mentions), unit.entity(entities.rows(slice(6))))
    torch.testing.assert_close(pairs, expected[:, :6].diagonal())


def test_only_the_scale_gets_a_gradient():
    unit = Lexical(DIMS)
    unit(features(4, 0), features(4, 1)).sum().backward()
    assert [name for name, p in unit.named_parameters() if p.grad is not None and p.grad.abs() > 0] == ["log_scale"]


def test_without_a_lexicon_it_says_what_to_do():
    with pytest.raises(ConfigError, match="--model.processor.features.lexical"):
        Lexical(DIMS).mention(reference.random_features(2, DIMS))


def test_the_weighted_sum_starts_as_the_mean_and_learns():
    units = {"text": lambda dims: TGLU(dims, 8), "global": GlobalCosine, "lexical": Lexical}
    torch.manual_seed(0)
    matcher = WeightedMatcher(DIMS, units)
    mean = Matcher(DIMS, units)
    mean.load_state_dict({k: v for k, v in matcher.state_dict().items() if k != "raw_weights"})
    mentions, entities = features(4, 0), features(5, 1)
    sides = matcher.mention(mentions), matcher.entity(entities)
    torch.testing.assert_close(matcher.score(*sides)["overall"], mean.score(*sides)["overall"])
    nn.init.constant_(matcher.raw_weights, -3.0)
    matcher.raw_weights.data[2] = 2.0
    scores = matcher.score(*sides)
    assert all(weight > 0 for weight in matcher.weights.values())
    expected = sum(matcher.weights[name] * scores[name] for name in units)
    torch.testing.assert_close(scores["overall"], expected)
    scores["overall"].sum().backward()
    assert (matcher.raw_weights.grad != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_ranking_equals_sorting_the_score_matrix(dtype):
    torch.manual_seed(1)
    matcher = WeightedMatcher(DIMS, {"text": lambda dims: TGLU(dims, 8), "lexical": Lexical})
    matcher.raw_weights.data = torch.tensor([0.3, 1.7])
    index = MemoryIndex(dtype=dtype)
    gold = torch.arange(8)[:, None] * 5
    with torch.no_grad():
        add(index, matcher.entity(features(60, 3)))
        mentions = matcher.mention(features(8, 2))
        found = [Ranker(60, prune=prune)(matcher, mentions, index, gold) for prune in (True, False)]
        sides = mentions, index.select(torch.arange(60)).states
        double = [
            {
                unit: {k: state[k].double() if state[k].is_floating_point() else state[k] for k in state}
                for unit, state in side.items()
            }
            for side in sides
        ]
        scores = matcher.double().score(*double)
    for ranking in found:
        for name, table in scores.items():
            order = table.float().argsort(dim=1, descending=True, stable=True)
            assert torch.equal(ranking.ranks[name], (order == gold).int().argmax(dim=1) + 1), name
        order = scores["overall"].float().argsort(dim=1, descending=True, stable=True)
        assert torch.equal(ranking.top_entities, order)


def test_no_pairs_have_no_scores():
    unit = Lexical(DIMS)
    none = {name: tensor[:0] for name, tensor in unit.mention(features(1, 0)).items()}
    assert unit.pairs(none, none).shape == (0,)
