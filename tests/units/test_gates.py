"""Gate values against the formulas of the paper, pair by pair."""

from __future__ import annotations

import torch

from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine, Matcher
from tests import reference
from tests.units.test_units import perturb

DIMS = FeatureDims(text=12, image=10)


def sides(dtype=torch.float64):
    torch.manual_seed(4)
    return (reference.random_features(count, DIMS, dtype=dtype) for count in (3, 5))


def test_vdlu_has_a_gate_for_every_pair_in_both_directions():
    unit = perturb(VDLU(DIMS, 6))
    mentions, entities = sides()

    def literal(direction, query_side, key_side):
        q = direction.global_(query_side.image_global)
        p = direction.local(key_side.image_local).mean(dim=0)
        return torch.tanh(direction.gate(direction.mix(direction.norm_sum(p + q)))).squeeze()

    expected = {
        "entity_to_mention": lambda m, e: literal(unit.entity_to_mention, e, m),
        "mention_to_entity": lambda m, e: literal(unit.mention_to_entity, m, e),
    }
    gates = unit.gates(mentions, entities)
    assert list(gates) == list(expected)
    for name, pair in expected.items():
        torch.testing.assert_close(gates[name], reference.pairwise(mentions, entities, pair), rtol=1e-9, atol=1e-9)


def test_cmfu_has_a_gate_on_each_side():
    unit = perturb(CMFU(DIMS, 8))
    mentions, entities = sides()
    gates = unit.gates(mentions, entities)
    for name, side in (("mention", mentions), ("entity", entities)):
        expected = [torch.tanh(unit.gate(unit.text(text))).squeeze() for text in side.text_global]
        torch.testing.assert_close(gates[name], torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_a_matcher_norms_the_features_and_leaves_out_units_without_gates():
    matcher = perturb(Matcher(DIMS, {"text": TGLU, "cosine": GlobalCosine, "vision": VDLU, "cross_modal": CMFU}))
    mentions, entities = sides()
    gates = matcher.gates(mentions, entities)
    assert {name: list(values) for name, values in gates.items()} == {
        "vision": ["entity_to_mention", "mention_to_entity"],
        "cross_modal": ["mention", "entity"],
    }
    normed = mentions._replace(text_global=matcher.text_global_norm(mentions.text_global))
    unit = matcher.units["cross_modal"]
    torch.testing.assert_close(gates["cross_modal"]["mention"], unit.gates(normed, entities)["mention"])
