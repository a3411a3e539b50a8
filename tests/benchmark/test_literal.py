"""The benchmark's implementation of the published order of operations gives the scores of the matcher."""

from __future__ import annotations

import pytest
import torch

from mimic_pl.benchmark import literal
from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine, Matcher
from tests import reference

DIMS = FeatureDims(12, 6)


def make_matcher(mask_padding):
    torch.manual_seed(1)
    text = {"text": lambda dims: TGLU(dims, 8, mask_padding), "vision": lambda dims: VDLU(dims, 6)}
    return Matcher(DIMS, {**text, "cross_modal": lambda dims: CMFU(dims, 8)}).double()


def sides(mentions=7, entities=9):
    torch.manual_seed(2)
    return (reference.random_features(count, DIMS, dtype=torch.float64) for count in (mentions, entities))


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(("mentions_at_once", "entities_at_once"), [(100, 100), (3, 4), (1, 1)])
def test_literal_scores_equal_the_scores_of_the_matcher(monkeypatch, mask_padding, mentions_at_once, entities_at_once):
    monkeypatch.setattr(literal, "MENTIONS_AT_ONCE", mentions_at_once)
    monkeypatch.setattr(literal, "ENTITIES_AT_ONCE", entities_at_once)
    matcher, (mentions, entities) = make_matcher(mask_padding), sides()
    expected = matcher.score(matcher.mention(mentions), matcher.entity(entities))
    found = literal.scores(matcher, mentions, entities)
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_each_unit_equals_the_reference_pair_by_pair(mask_padding):
    matcher, (mentions, entities) = make_matcher(mask_padding), sides(3, 4)
    normed = [literal.normed(matcher, side) for side in (mentions, entities)]
    for name, pair in (("text", reference.tglu), ("vision", reference.vdlu), ("cross_modal", reference.cmfu)):
        found = literal.scores(matcher, *normed, only=name)[name]
        unit = matcher.units[name]
        expected = reference.pairwise(*normed, lambda m, e, unit=unit, pair=pair: pair(unit, m, e))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_other_units_have_no_published_order():
    with pytest.raises(ConfigError, match="GlobalCosine"):
        literal.require_published(Matcher(DIMS, {"cosine": GlobalCosine}))
