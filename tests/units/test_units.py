"""Units against literal reference implementations, pair by pair."""

import pytest
import torch

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU, VDLU, CompactVector, GlobalCosine, Matcher, Unit, published_units
from tests import reference

DIMS = FeatureDims(text=12, image=10)


class Product(Unit):
    """A minimal unit that implements only the three required functions."""

    def mention(self, features):
        return {"image": features.image_global}

    entity = mention

    def score(self, mentions, entities):
        return mentions["image"] @ entities["image"].T


def perturb(module: torch.nn.Module) -> torch.nn.Module:
    """Move norms and biases away from their identity initialization, so that each of them has an effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.double()


@pytest.mark.parametrize(
    ("unit", "literal"),
    [
        (TGLU(DIMS, 8), reference.tglu),
        (TGLU(DIMS, 8, mask_padding=True), reference.tglu),
        (VDLU(DIMS, 10), reference.vdlu),
        (VDLU(DIMS, 6), reference.vdlu),
        (CMFU(DIMS, 8), reference.cmfu),
    ],
    ids=["tglu", "tglu-masked", "vdlu", "vdlu-narrow", "cmfu"],
)
@pytest.mark.parametrize(("num_mentions", "num_entities"), [(1, 1), (1, 7), (3, 1), (4, 6)])
def test_scores_and_gradients_equal_the_literal_formula(unit, literal, num_mentions, num_entities):
    torch.manual_seed(num_mentions * 10 + num_entities)
    perturb(unit).zero_grad()
    mentions = reference.random_features(num_mentions, DIMS, dtype=torch.float64)
    entities = reference.random_features(num_entities, DIMS, tokens=3, dtype=torch.float64)
    weight = torch.randn(num_mentions, num_entities, dtype=torch.float64)

    expected = reference.pairwise(mentions, entities, lambda m, e: literal(unit, m, e).squeeze())
    (expected * weight).sum().backward()
    expected_gradients = {name: p.grad.clone() for name, p in unit.named_parameters()}
    unit.zero_grad()

    scores = unit(mentions, entities)
    (scores * weight).sum().backward()
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in unit.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_gradients[name], rtol=1e-7, atol=1e-8, msg=name)


def test_vdlu_in_float32_is_as_accurate_as_the_literal_order():
    """The algebra without pair vectors loses no accuracy at published sizes."""
    torch.manual_seed(0)
    dims = FeatureDims(text=8, image=96)
    unit = VDLU(dims)
    mentions, entities = (reference.random_features(n, dims, patches=50) for n in (6, 9))
    in_float32 = unit(mentions, entities)
    literal32 = reference.pairwise(mentions, entities, lambda m, e: reference.vdlu(unit, m, e))
    unit.double()
    exact = unit(*(f.map(torch.Tensor.double) for f in (mentions, entities)))
    error, literal_error = (in_float32 - exact).abs().max(), (literal32 - exact).abs().max()
    assert error < 1e-4
    assert error < 5 * literal_error


@pytest.mark.parametrize(
    "unit",
    [
        *(TGLU(DIMS, 8), TGLU(DIMS, 8, mask_padding=True), VDLU(DIMS, 6), CMFU(DIMS, 8)),
        *(GlobalCosine(DIMS), CompactVector(DIMS, 5), Product(DIMS)),
    ],
    ids=["tglu", "tglu-masked", "vdlu", "cmfu", "cosine", "compact", "default"],
)
@pytest.mark.parametrize("count", [1, 5, 70])
def test_scores_of_aligned_pairs_are_the_diagonal(unit, count):
    torch.manual_seed(count)
    unit = perturb(unit)
    mentions, entities = (reference.random_features(count, DIMS, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        states = unit.mention(mentions), unit.entity(entities)
        torch.testing.assert_close(unit.pairs(*states), unit.score(*states).diagonal())


def test_masked_padding_changes_no_score_however_much_there_is():
    torch.manual_seed(2)
    unit = TGLU(DIMS, 8, mask_padding=True)
    mentions, entities = reference.random_features(3, DIMS), reference.random_features(4, DIMS)
    padded = [
        f._replace(
            text_local=torch.cat([f.text_local, torch.randn(len(f.text_local), 6, DIMS.text)], dim=1),
            text_mask=torch.cat([f.text_mask, torch.zeros(len(f.text_mask), 6, dtype=torch.int64)], dim=1),
        )
        for f in (mentions, entities)
    ]
    torch.testing.assert_close(unit(*padded), unit(mentions, entities))


def test_overall_is_the_mean_of_the_units_and_units_are_named_as_given():
    torch.manual_seed(4)
    matcher = Matcher(DIMS, {"lexical": GlobalCosine, "vision": lambda dims: VDLU(dims, 10)})
    features = reference.random_features(3, DIMS), reference.random_features(4, DIMS)
    scores = matcher.score(matcher.mention(features[0]), matcher.entity(features[1]))
    assert list(scores) == ["overall", "lexical", "vision"] == list(matcher.score_names)
    torch.testing.assert_close(scores["overall"], (scores["lexical"] + scores["vision"]) / 2)


def test_an_entity_of_the_published_model_is_4832_numbers():
    dims = FeatureDims(512, 96)
    matcher = Matcher(dims, published_units())
    states = matcher.entity(reference.random_features(2, dims, tokens=40, patches=50))
    assert sum(tensor[0].numel() for state in states.values() for tensor in state.values()) == 4832


@pytest.mark.parametrize("units", [{}, {"overall": GlobalCosine}])
def test_a_model_without_units_or_with_a_reserved_name_is_rejected(units):
    with pytest.raises(ConfigError, match="overall"):
        Matcher(DIMS, units)


def test_vdlu_without_gates_adds_c_unscaled():
    """o = LN2(c + k) for every pair, and the parameters of the gates get no gradient."""
    torch.manual_seed(3)
    unit = perturb_all_but_gates(VDLU(DIMS, 6, gated=False))
    mentions = reference.random_features(4, DIMS, dtype=torch.float64)
    entities = reference.random_features(5, DIMS, dtype=torch.float64)

    def direction(part, query_side, key_side):
        q, k = part.global_(query_side.image_global), part.global_(key_side.image_global)
        c = part.mix(part.norm_sum(part.local(key_side.image_local).mean(dim=-2) + q))
        return part.norm(c + k) @ part.norm(q)

    def literal(mention, entity):
        return (
            direction(unit.entity_to_mention, entity, mention) + direction(unit.mention_to_entity, mention, entity)
        ) / 2

    scores = unit(mentions, entities)
    torch.testing.assert_close(scores, reference.pairwise(mentions, entities, literal), rtol=1e-9, atol=1e-9)
    scores.sum().backward()
    assert all((p.grad is None) == (".gate." in name) for name, p in unit.named_parameters())
    assert unit.gates(mentions, entities) == {}


def perturb_all_but_gates(module: torch.nn.Module) -> torch.nn.Module:
    kept = {name: value.clone() for name, value in module.state_dict().items() if ".gate." in name}
    module = perturb(module)
    module.load_state_dict(kept, strict=False)
    return module


@pytest.mark.parametrize("modality", [None, "both", "text", "image"])
def test_the_cosine_compares_the_chosen_modality(modality):
    torch.manual_seed(4)
    unit = GlobalCosine(DIMS, scale=3.0, **({"modality": modality} if modality else {}))
    mentions, entities = (reference.random_features(n, DIMS) for n in (3, 5))
    both = ("text_global", "image_global")
    parts = {"text": both[:1], "image": both[1:]}.get(modality, both)
    m, e = (torch.cat([getattr(side, part) for part in parts], dim=1) for side in (mentions, entities))
    expected = 3 * torch.nn.functional.cosine_similarity(m[:, None], e[None], dim=-1)
    torch.testing.assert_close(unit(mentions, entities), expected)
    pairs = unit.pairs(unit.mention(mentions), unit.entity(entities.rows(slice(3))))
    torch.testing.assert_close(pairs, expected[:, :3].diagonal())
