"""The centred cosine of pretrained features, and totals of a knowledge base, against literal formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.ranking import MemoryIndex, Ranker, fingerprint, index_totals
from mimic_pl.units import GlobalCosine, Matcher, WeightedMatcher, check_unit
from tests.ranking.tables import add

DIMS = FeatureDims(12, 10, 7, 5)
CENTERED = {"pretrained": True, "centered": True}


def features(count, seed, without_image=()):
    """Random features with a large common part, as those of pretrained towers."""
    generator = torch.Generator().manual_seed(seed)
    made = Features(
        *(torch.randn(count, *shape, generator=generator) for shape in ((12,), (3, 12), (10,), (4, 10))),
        text_mask=torch.ones(count, 3, dtype=torch.int64),
        extra={
            "text_pretrained": 2 + torch.randn(count, 7, generator=generator),
            "image_pretrained": 2 + torch.rand(count, 5, generator=generator),
        },
    )
    made.extra["image_pretrained"][list(without_image)] = 0
    return made


def directions(features, modality):
    own = ("text_pretrained", "image_pretrained") if modality == "both" else (f"{modality}_pretrained",)
    joined = np.concatenate([features.extra[name].double().numpy() for name in own], axis=1)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def literal(mentions, entities, mention_center, entity_center):
    """Cosines pair by pair."""

    def cosine(x, y):
        return x @ y / np.sqrt((x @ x) * (y @ y))

    return [[cosine(m - mention_center, e - entity_center) for e in entities] for m in mentions]


@pytest.mark.parametrize("modality", ["text", "image", "both"])
@pytest.mark.parametrize("centers_mentions", [True, False])
def test_scores_are_cosines_of_what_differs_from_the_means(modality, centers_mentions):
    unit = GlobalCosine(DIMS, scale=3.0, modality=modality, **CENTERED)
    mentions, entities, sample = features(4, 0), features(9, 1), features(20, 2)
    unit.set_totals("entities", unit.totals(unit.entity(entities)))
    of_entities = directions(entities, modality)
    center = of_entities.mean(axis=0)
    mention_center = center
    if centers_mentions:
        unit.set_totals("mentions", unit.totals(unit.mention(sample)))
        mention_center = directions(sample, modality).mean(axis=0)
    expected = 3 * np.array(literal(directions(mentions, modality), of_entities, mention_center, center))
    np.testing.assert_allclose(unit(mentions, entities).detach(), expected, atol=1e-5)
    pairs = unit.pairs(unit.mention(mentions), unit.entity(entities.rows(slice(4))))
    np.testing.assert_allclose(pairs.detach(), expected[:, :4].diagonal(), atol=1e-5)
    check_unit(unit)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("count", [4, 90])
def test_a_whitened_projection_scores_cosines_of_whitened_features(centered, count):
    """Before training: against the eigenvectors and eigenvalues of the covariance."""
    unit = GlobalCosine(DIMS, scale=3.0, modality="both", pretrained=True, centered=centered, projection=6)
    mentions, entities = features(5, 0), features(count, 1)
    sides = unit.compared(mentions), unit.compared(entities)
    unit.whiten(*sides)
    for side, own in (("mentions", mentions), ("entities", entities)):
        unit.set_totals(side, unit.totals(unit.mention(own)))

    x, y = (side.double().numpy() for side in sides)
    centers = (x.mean(axis=0), y.mean(axis=0)) if centered else (0, 0)
    rows = np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)])
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    whitening = vectors[:, -6:] / np.sqrt(values[-6:] + values.sum() / min(rows.shape))
    expected = 3 * np.array(literal((x - centers[0]) @ whitening, (y - centers[1]) @ whitening, 0, 0))
    np.testing.assert_allclose(unit(mentions, entities).detach(), expected, atol=1e-4)
    lengths = np.linalg.norm(rows @ unit.projection.detach().numpy().T, axis=1)
    np.testing.assert_allclose(lengths.mean(), 1, rtol=1e-5)
    check_unit(unit)


@pytest.mark.parametrize("copies", [1, 7], ids=["fewer than numbers", "more than numbers"])
def test_features_of_few_different_records_are_not_whitened_by_rounding_errors(copies):
    """As in a knowledge base with many entities of one picture: the rows vary in three directions only."""
    rng = np.random.default_rng(0)
    dims, kinds = FeatureDims(8, 8, 40, 8), rng.normal(size=(4, 40)) + 2
    rows = np.tile(kinds / np.linalg.norm(kinds, axis=1, keepdims=True), (7 * copies, 1))
    torch.manual_seed(0)
    unit = GlobalCosine(dims, modality="text", pretrained=True, projection=12)
    unit.whiten(torch.tensor(rows, dtype=torch.float32))
    centered = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered / len(rows))
    exact = centered @ vectors[:, -3:] / np.sqrt(values[-3:] + values.sum() / min(rows.shape))
    exact /= np.linalg.norm(exact, axis=1).mean()
    whitened = centered @ unit.projection.detach().double().numpy().T
    np.testing.assert_allclose(whitened @ whitened.T, exact @ exact.T, atol=2e-3)


def test_a_projection_needs_enough_features_to_whiten():
    unit = GlobalCosine(DIMS, modality="text", pretrained=True, projection=7)
    with pytest.raises(ConfigError, match="7 dimensions"):
        unit.whiten(unit.compared(features(4, 0)))
    with pytest.raises(ConfigError, match="7 dimensions"):
        unit.whiten(unit.compared(features(1, 0)).expand(20, -1))  # all the same
    with pytest.raises(ConfigError, match="set its projection"):
        GlobalCosine(DIMS).whiten(torch.ones(3, 22))


def test_a_missing_image_resembles_nothing_and_does_not_move_the_mean():
    unit = GlobalCosine(DIMS, modality="image", **CENTERED)
    mentions, entities = features(3, 0, without_image=[1]), features(6, 1, without_image=[0, 4])
    totals = unit.totals(unit.entity(entities))
    assert int(totals["count"]) == 4
    unit.set_totals("entities", totals)
    np.testing.assert_allclose(
        unit.entity_center, directions(entities.rows(torch.tensor([1, 2, 3, 5])), "image").mean(0), atol=1e-6
    )
    scores = unit(mentions, entities)
    assert not scores[1].any() and not scores[:, [0, 4]].any()
    assert scores[[0, 2]][:, [1, 2, 3, 5]].all()


def test_a_feature_that_equals_the_mean_scores_almost_0():
    unit = GlobalCosine(DIMS, modality="text", **CENTERED)
    entities = features(1, 0).rows(torch.zeros(8, dtype=torch.int64))  # all the same
    unit.set_totals("entities", unit.totals(unit.entity(entities)))
    assert unit(features(3, 1), entities).abs().max() < 0.01


def test_pretrained_features_of_an_encoder_that_has_none():
    with pytest.raises(ConfigError, match="pretrained towers"):
        GlobalCosine(FeatureDims(12, 10), pretrained=True)


@given(st.lists(st.integers(0, 29), max_size=40), st.integers(1, 7))
def test_totals_do_not_depend_on_the_history(steps, size):
    """Adding and removing entities in any order and blocks gives the totals of those that remain, to the last bit."""
    unit = GlobalCosine(DIMS, modality="both", **CENTERED)
    state = unit.entity(features(30, 3, without_image=[2]))["direction"]
    present: set[int] = set()
    totals = unit.totals({"direction": state[:0]})
    for step in steps:
        sign = -1 if step in present else 1
        present ^= {step}
        change = unit.totals({"direction": state[[step]]})
        totals = {name: total + sign * change[name] for name, total in totals.items()}
    order = sorted(present, reverse=True)
    blocks = [unit.totals({"direction": state[order[at : at + size]]}) for at in range(0, len(order) + 1, size)]
    for name, total in totals.items():
        assert total.dtype == torch.int64
        assert torch.equal(total, torch.stack([block[name] for block in blocks]).sum(dim=0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranking_follows_a_knowledge_base_without_encoding_it_again(dtype):
    units = {"image": lambda dims: GlobalCosine(dims, modality="image", **CENTERED)}
    matcher, fresh = (Matcher(DIMS, units) for _ in range(2))
    entities, mentions = features(50, 1), features(6, 2)
    entities.extra["image_pretrained"][[7, 31]] = entities.extra["image_pretrained"][3].clone()  # ties
    with torch.no_grad():
        first = MemoryIndex(dtype=dtype)
        add(first, matcher.entity(entities.rows(slice(20))))
        before = Ranker(20)(matcher, matcher.mention(mentions), first)
        matcher.set_totals("entities", index_totals(matcher, first))
        after = Ranker(20)(matcher, matcher.mention(mentions), first)
        assert not torch.equal(before.top_entities, after.top_entities), "centring matters here"
        add(first, matcher.entity(entities.rows(slice(20, 50))))
        matcher.set_totals("entities", index_totals(matcher, first))
        found = Ranker(50)(matcher, matcher.mention(mentions), first)

        at_once = MemoryIndex(dtype=dtype)
        back = torch.arange(49, -1, -1)
        add(at_once, fresh.entity(entities.rows(back)), order=back)
        fresh.set_totals("entities", index_totals(fresh, at_once))
        expected = Ranker(50)(fresh, fresh.mention(mentions), at_once)
        scores = fresh.score(fresh.mention(mentions), at_once.select(torch.arange(50)).states)["image"].double()
    assert torch.equal(found.top_entities, expected.top_entities)
    order = scores.numpy().argsort(axis=1, kind="stable")[:, ::-1]
    rows = np.take_along_axis(scores.numpy(), found.top_entities.numpy(), axis=1)
    np.testing.assert_allclose(rows, np.take_along_axis(scores.numpy(), order, axis=1), atol=1e-6)
    tied = [row.index(3) for row in found.top_entities.tolist()]
    assert all(row[at : at + 3] == [3, 7, 31] for row, at in zip(found.top_entities.tolist(), tied, strict=True)), (
        "ties in the order of the entities"
    )


def test_what_only_scores_depend_on_leaves_an_index_valid():
    units = {"image": lambda dims: GlobalCosine(dims, modality="image", **CENTERED)}
    matcher = WeightedMatcher(DIMS, units)
    of_entities, of_all = fingerprint(matcher, of_entities=True), fingerprint(matcher)
    totals = matcher.totals(matcher.mention(features(4, 0)))
    matcher.set_totals("entities", totals)
    assert matcher.units["image"].entity_center.any() and fingerprint(matcher) == of_all, "no weight"
    matcher.set_totals("mentions", totals)
    assert fingerprint(matcher) != of_all
    matcher.set_weights(torch.tensor([0.2]))
    matcher.units["image"].log_scale.data.add_(1)
    assert fingerprint(matcher, of_entities=True) == of_entities
    matcher.image_global_norm.weight.data[0] += 1
    assert fingerprint(matcher, of_entities=True) != of_entities
