"""Weights that start at 0: units that know nothing yet leave the scores of the others as they are."""

from __future__ import annotations

import pytest
import torch

from mimic_pl import MIMIC
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.units import GlobalCosine, WeightedMatcher
from tests import tiny
from tests.training import UNITS

ENTITIES = [{"id": f"Q{n}", "name": name, "attr": "a river"} for n, name in enumerate(tiny.NAMES * 5)]
MENTIONS = [{"mention": name, "sentence": f"the {name} {text}"} for name in tiny.NAMES for text in tiny.KINDS.values()]
STARTING = {"first": GlobalCosine, "second": lambda dims: GlobalCosine(dims, scale=2.0, modality="text")}


def parts(units, initial=None):
    torch.manual_seed(0)
    encoder = CLIPEncoder(**tiny.ENCODER)
    return MIMIC(encoder, units=units, matcher=lambda dims, units: WeightedMatcher(dims, units, initial)).eval()


@pytest.mark.parametrize("units", [{**STARTING, **UNITS}, {**UNITS, **STARTING}], ids=["after", "before"])
def test_units_of_weight_0_change_no_score(units):
    zero_shot, added = parts(STARTING), parts(units, dict.fromkeys(UNITS, 0.0))
    assert {name: weight for name, weight in added.matcher.weights.items() if weight} == zero_shot.matcher.weights
    scores = [one.score(one.encode_mentions(MENTIONS), one.encode_entities(ENTITIES)) for one in (zero_shot, added)]
    assert torch.equal(scores[1]["overall"], scores[0]["overall"])
    assert all(scores[1][name].std() > 0 for name in ("text", "cross_modal")), "but vision sees no images"
    doubled = added.matcher.double().weights
    assert [doubled[name] for name in UNITS] == [0, 0, 0]


def test_such_a_unit_has_no_gradient_through_the_overall_score_and_its_weight_can_be_fitted():
    model = parts({**STARTING, **UNITS}, dict.fromkeys(UNITS, 0.0))
    before = model.matcher.raw_weights.detach().clone()
    optimizer = torch.optim.AdamW(model.matcher.parameters(), lr=0.1)
    mentions, entities = model.encode_mentions(MENTIONS), model.encode_entities(ENTITIES)
    model.matcher.score(mentions, entities)["overall"].sum().backward()
    assert not any(model.matcher.raw_weights.grad[2:]) and all(model.matcher.raw_weights.grad[:2])
    optimizer.step()
    assert all(model.matcher.raw_weights[:2] != before[:2])
    assert [model.matcher.weights[name] for name in UNITS] == [0, 0, 0]
    model.matcher.set_weights(torch.arange(1.0, 6.0))
    assert list(model.matcher.weights.values()) == pytest.approx([1, 2, 3, 4, 5], rel=1e-5)


def test_weights_start_from_the_given_ones():
    matcher = WeightedMatcher(FeatureDims(8, 8), STARTING, {"second": 0.7})
    assert matcher.weights == {"first": pytest.approx(0.5), "second": pytest.approx(0.7)}
    with pytest.raises(ConfigError, match=r"initial weights of \['third'\]"):
        WeightedMatcher(FeatureDims(8, 8), STARTING, {"third": 0.0})
    with pytest.raises(ConfigError, match="initial"):
        WeightedMatcher(FeatureDims(8, 8), STARTING, {"first": -1.0})
