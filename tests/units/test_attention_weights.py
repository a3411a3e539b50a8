"""Attention weights of the units, against the literal formulas in float64."""

import math

import pytest
import torch

from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU
from tests import reference
from tests.units.test_units import perturb

DIMS = FeatureDims(text=12, image=10)
PAIRS = 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(5)


def sides():
    return (reference.random_features(PAIRS, DIMS, tokens=tokens, dtype=torch.float64) for tokens in (5, 3))


@torch.no_grad()
def test_cmfu_attention():
    unit = perturb(CMFU(DIMS, 8))
    features, _ = sides()
    attention = unit.attention(features)
    for row in range(PAIRS):
        x, y = unit.text(features.text_global[row]), unit.image(features.image_local[row])
        weights = [math.exp(float(x @ token)) for token in y]
        torch.testing.assert_close(attention[row], torch.tensor(weights).double() / sum(weights), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_tglu_attention_reproduces_its_score(masked):
    unit = perturb(TGLU(DIMS, 8, mask_padding=masked))
    mentions, entities = sides()
    found = unit.attention(unit.mention(mentions), unit.entity(entities))
    for row in range(PAIRS):
        m, e = mentions.rows(row), entities.rows(row)
        query, key, value = unit.query(e.text_local), unit.key(m.text_local), unit.value(m.text_local)
        logits = query @ key.T / math.sqrt(8)
        if masked:
            logits = logits[e.text_mask.bool()].masked_fill(~m.text_mask.bool(), -math.inf)
        weights = torch.softmax(logits, dim=-1).mean(dim=0)
        torch.testing.assert_close(found[row], weights, rtol=1e-9, atol=1e-12)
        score = (m.text_global @ e.text_global + unit.context(e.text_global) @ unit.norm(found[row] @ value)) / 2
        torch.testing.assert_close(score, reference.tglu(unit, m, e), rtol=1e-9, atol=1e-9)
