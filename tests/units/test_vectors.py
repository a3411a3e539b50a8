"""Vectors of the units: their inner products are the scores, or the part of them that an inner product can be."""

import pytest
import torch

from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU, VDLU, CompactVector, GlobalCosine, Lexical, Matcher, WeightedMatcher
from mimic_pl.units.check import random_features

DIMS = FeatureDims(text=24, image=12)


def drawn(count, tokens=None):
    features = random_features(count, DIMS, {})
    if tokens is not None:
        features = features._replace(
            text_local=features.text_local[:, :tokens], text_mask=features.text_mask[:, :tokens]
        )
    return features


def product(unit, mentions, entities):
    return unit.query_vector(unit.mention(mentions)) @ unit.key_vector(unit.entity(entities)).T


UNITS = {
    "CMFU": CMFU,
    "compact": CompactVector,
    "cosine": GlobalCosine,
    "projected cosine": lambda dims: GlobalCosine(dims, projection=5, scale=3.0),
    "cosine of images": lambda dims: GlobalCosine(dims, modality="image"),
}


@pytest.mark.parametrize("name", UNITS)
def test_the_product_is_the_score(name):
    torch.manual_seed(0)
    unit, mentions, entities = UNITS[name](DIMS), drawn(5), drawn(9)
    torch.testing.assert_close(product(unit, mentions, entities), unit(mentions, entities), rtol=1e-5, atol=1e-5)


def without_gates(dims):
    unit = VDLU(dims, hidden_dim=8)
    for gate in (unit.entity_to_mention.gate, unit.mention_to_entity.gate):
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.zeros_(gate.bias)
    return unit


def test_the_product_of_vdlu_is_its_score_with_gates_of_0():
    torch.manual_seed(6)
    mentions, entities = drawn(5), drawn(9)
    gated, unit = VDLU(DIMS, hidden_dim=8), without_gates(DIMS)
    assert not torch.allclose(product(gated, mentions, entities), gated(mentions, entities), atol=1e-3)
    torch.testing.assert_close(product(unit, mentions, entities), unit(mentions, entities), rtol=1e-5, atol=1e-5)


def test_the_product_follows_the_means_of_a_centred_cosine():
    torch.manual_seed(1)
    unit, mentions, entities = GlobalCosine(DIMS, centered=True), drawn(5), drawn(9)
    unit.set_totals("entities", unit.totals(unit.entity(entities)))
    before = unit(mentions, entities)
    torch.testing.assert_close(product(unit, mentions, entities), before)
    unit.set_totals("mentions", unit.totals(unit.mention(mentions)))
    assert not torch.allclose(unit(mentions, entities), before)
    torch.testing.assert_close(product(unit, mentions, entities), unit(mentions, entities))


@pytest.mark.parametrize("masked", [False, True])
def test_the_product_of_tglu_is_its_score_where_there_is_nothing_to_attend_to(masked):
    """A mention with a single token has one possible attention, and so has one whose other tokens are masked."""
    torch.manual_seed(2)
    unit, mentions, entities = TGLU(DIMS, hidden_dim=8, mask_padding=masked), drawn(5, tokens=None), drawn(9)
    if masked:
        mentions = mentions._replace(text_mask=torch.zeros_like(mentions.text_mask).index_fill(1, torch.tensor([2]), 1))
    else:
        assert not torch.allclose(product(unit, mentions, entities), unit(mentions, entities), atol=1e-3)
        mentions = drawn(5, tokens=1)
    torch.testing.assert_close(product(unit, mentions, entities), unit(mentions, entities), rtol=1e-5, atol=1e-5)


def test_tglu_without_its_local_part_is_half_of_the_global_product():
    torch.manual_seed(3)
    unit, mentions, entities = TGLU(DIMS, hidden_dim=8), drawn(5), drawn(9)
    torch.nn.init.zeros_(unit.context.weight)
    torch.nn.init.zeros_(unit.context.bias)
    expected = mentions.text_global @ entities.text_global.T / 2
    torch.testing.assert_close(product(unit, mentions, entities), expected)


def test_the_product_of_the_matcher_is_the_sum_that_the_units_contribute():
    torch.manual_seed(4)
    units = {"cross": CMFU, "picture": GlobalCosine, "vision": without_gates}
    mentions, entities = drawn(5), drawn(9)
    matchers = {
        Matcher(DIMS, units): dict.fromkeys(units, 1 / 3),
        WeightedMatcher(DIMS, units, {"cross": 0.7, "picture": 0.0, "vision": 2.0}): {
            "cross": 0.7,
            "picture": 0.0,
            "vision": 2.0,
        },
    }
    for matcher, weights in matchers.items():
        of_mentions, of_entities = matcher.mention(mentions), matcher.entity(entities)
        scores = matcher.score(of_mentions, of_entities)
        found = matcher.query_vectors(of_mentions) @ matcher.key_vectors(of_entities).T
        expected = sum(weights[name] * scores[name] for name in units)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(matcher.vector_products(of_mentions, of_entities), found, rtol=1e-5, atol=1e-5)
        assert matcher.key_vectors(of_entities).shape == (9, 96 + 36 + 16)


def test_a_negative_contribution_turns_the_product_around():
    class Difference(Matcher):
        def combine(self, scores):
            return scores["one"] - 0.25 * scores["other"] + 7

    torch.manual_seed(5)
    matcher, mentions, entities = Difference(DIMS, {"one": CMFU, "other": CMFU}), drawn(5), drawn(9)
    states = matcher.mention(mentions), matcher.entity(entities)
    for found in (
        matcher.query_vectors(states[0]) @ matcher.key_vectors(states[1]).T,
        matcher.vector_products(*states),
    ):
        torch.testing.assert_close(found, matcher.score(*states)["overall"] - 7, rtol=1e-5, atol=1e-5)


def test_without_vectors_the_width_is_zero():
    terms = {"lexical.ids": torch.ones(4, 3, dtype=torch.int64), "lexical.weights": torch.ones(4, 3)}
    matcher, features = Matcher(DIMS, {"words": Lexical, "others": Lexical}), drawn(4)._replace(extra=terms)
    assert matcher.query_vectors(matcher.mention(features)).shape == (4, 0)
    assert matcher.key_vectors(matcher.entity(features)).shape == (4, 0)
    assert matcher.vector_products(matcher.mention(features), matcher.entity(features)) is None
