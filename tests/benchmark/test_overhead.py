"""Counted operations against counts by hand."""

from __future__ import annotations

import pytest
import torch

from mimic_pl.benchmark.flops import flops, matcher_flops, parameters
from mimic_pl.benchmark.overhead import variants
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine, Matcher
from tests import reference, tiny

T, V, D = 12, 6, 8  # widths of text, images and hidden layers
WORDS, PATCHES = 5, 4
DIMS = FeatureDims(text=T, image=V)

BY_HAND = {
    # Key and value of each word; query of each word and the context; Q K^T, w V and the product of the global features.
    "TGLU": (2 * WORDS * 2 * T * D, WORDS * 2 * T * D + 2 * T * D, WORDS * WORDS * 2 * D + WORDS * 2 * D + 2 * T),
    # On both sides query, key, each patch, and W_f of a query and of a pooled vector; five products per direction, two
    # of them with two more columns for sums.
    "VDLU": (*[(2 + PATCHES) * 2 * V * D + 2 * 2 * D * D] * 2, 2 * 2 * (5 * D + 2 * 2)),
    # On both sides text, each patch, the gate, two products of the attention; one product.
    "CMFU": (*[2 * T * D + PATCHES * 2 * V * D + 2 * D + 2 * PATCHES * 2 * D] * 2, 2 * D),
    "GlobalCosine": (0, 0, 2 * (T + V)),
}


def test_products_and_attention():
    assert flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 2 * 2 * 3 * 4
    query = torch.ones(1, 2, 5, 4)  # batch, heads, tokens, width
    attention = torch.nn.functional.scaled_dot_product_attention
    assert flops(lambda: attention(query, query, query)) == 2 * (2 * 2 * 5 * 5 * 4)


@pytest.mark.parametrize("name", list(BY_HAND))
@pytest.mark.parametrize(("mentions", "entities"), [(2, 2), (4, 6)])
def test_flops_of_the_units(name, mentions, entities):
    factory = {
        "TGLU": lambda dims: TGLU(dims, D),
        "VDLU": lambda dims: VDLU(dims, D),
        "CMFU": lambda dims: CMFU(dims, D),
        "GlobalCosine": GlobalCosine,
    }[name]
    sides = (reference.random_features(count, DIMS, WORDS, PATCHES) for count in (mentions, entities))
    assert matcher_flops(Matcher(DIMS, {"unit": factory}), *sides) == pytest.approx(BY_HAND[name])


def test_flops_of_an_encoder():
    encoder = CLIPEncoder(**tiny.ENCODER)
    hidden, intermediate, projected, width = 16, 32, 16, 8

    def tower(tokens):
        return 4 * 2 * tokens * hidden**2 + 2 * 2 * tokens**2 * hidden + 2 * 2 * tokens * hidden * intermediate

    words, patches = 16, (16 // 8) ** 2
    text = tower(words) + 2 * hidden * projected
    image = 2 * patches * (3 * 8 * 8) * hidden + tower(patches + 1) + 2 * hidden * projected
    reduced = 2 * projected * width + 2 * (patches + 1) * hidden * width
    ids = torch.zeros(1, words, dtype=torch.int64)
    counted = flops(lambda: encoder(input_ids=ids, attention_mask=ids + 1, pixel_values=torch.zeros(1, 3, 16, 16)))
    assert counted == text + image + reduced


def test_only_trainable_parameters_are_counted():
    module = torch.nn.Linear(3, 4)
    assert parameters(module) == 16
    module.weight.requires_grad_(False)
    assert parameters(module) == 4


def test_variants_have_the_units_their_names_say():
    found = {name: set(units) for name, units in variants().items()}
    whole = {"text", "vision", "cross_modal"}
    assert found["MIMIC"] == found["padding masked"] == found["concatenation in vision's place"] == whole
    for unit in whole:
        assert found[f"without {unit}"] == whole - {unit}
        assert found[f"{unit} alone"] == {unit}
    replaced = variants()["concatenation in vision's place"]["vision"](DIMS)
    assert isinstance(replaced, GlobalCosine)
    assert variants()["padding masked"]["text"](DIMS).mask_padding
