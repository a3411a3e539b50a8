"""The compact vector: it learns to stand for the overall score, and nothing else notices it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from mimic_pl import MIMIC, LossInputs, MELDataModule
from mimic_pl.callbacks import WeightCalibration
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.units import CompactVector, Matcher, WeightedMatcher
from mimic_pl.units.check import random_features
from tests import tiny
from tests.training import UNITS, make_trainer

DIMS = FeatureDims(text=12, image=10)
COMPACT = {"compact": partial(CompactVector, width=8)}


def model_with(units, matcher=Matcher, lr=1e-3):
    seed_everything(0)
    return MIMIC(
        CLIPEncoder(**tiny.ENCODER), units=units, matcher=matcher, optimizer=lambda p: torch.optim.AdamW(p, lr=lr)
    )


def data_of(tiny_set):
    return MELDataModule(str(tiny_set), name="Tiny", batch_size=8, num_workers=0)


def scores_of(model, data):
    """All test mentions with all entities, from features."""
    sides = {}
    with torch.no_grad():
        for side, loader in (("mentions", data.test_dataloader()), ("entities", data.entity_dataloader())):
            batches = [data.on_after_batch_transfer(batch, 0)[side] for batch in loader]
            sides[side] = Features.joined(model.eval().encode(batch) for batch in batches)
        return model.matcher.score(model.matcher.mention(sides["mentions"]), model.matcher.entity(sides["entities"]))


@pytest.mark.parametrize("matcher", [Matcher, WeightedMatcher])
@pytest.mark.parametrize("units", [{**UNITS, **COMPACT}, {**COMPACT, **UNITS}], ids=["after", "before"])
def test_the_rest_of_the_model_is_what_it_is_without_it(tiny_set, tmp_path, units, matcher):
    """Bit by bit: weights before and after training, hence gradients, and then scores, metrics and fitted weights."""
    found = []
    for given in (UNITS, units):
        model, data = model_with(given, matcher), data_of(tiny_set)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        callbacks = [WeightCalibration()] if matcher is WeightedMatcher else []
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=2)
        trainer.fit(model, data)
        (tested,) = trainer.test(model, data, verbose=False)
        found.append((before, dict(model.state_dict()), tested, scores_of(model, data)))
    for alone, beside in zip(*found, strict=True):
        common = alone.keys() & beside.keys()
        assert all(torch.equal(torch.as_tensor(alone[name]), torch.as_tensor(beside[name])) for name in common)
        assert {name for name in alone.keys() ^ beside.keys() if "compact" not in name} == set()
    before, after = (states["matcher.units.compact.projection.weight"] for states in found[1][:2])
    assert not torch.equal(before, after)


def test_no_gradient_leaves_it():
    torch.manual_seed(0)
    unit = CompactVector(DIMS, width=5)
    drawn = [random_features(count, DIMS, {}) for count in (4, 6)]
    sides = [features.map(lambda x: x.requires_grad_() if x.is_floating_point() else x) for features in drawn]
    unit(*sides).square().sum().backward()
    assert all(tensor.grad is None for side in sides for tensor in side.tensors().values())
    assert all(parameter.grad is not None for parameter in unit.parameters())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_the_divergence_from_the_overall_score(temperature):
    """Written out in NumPy; only the unit's scores get a gradient."""
    torch.manual_seed(1)
    matcher = Matcher(DIMS, {**UNITS, "short": partial(CompactVector, width=5, temperature=temperature)})
    mentions, entities = random_features(4, DIMS, {}), random_features(7, DIMS, {})
    scores = matcher.score(matcher.mention(mentions), matcher.entity(entities))
    inputs = LossInputs(scores, mentions, entities, torch.zeros(4, 7, dtype=torch.bool), local_weight=0.5)
    loss = matcher.units["short"].loss(inputs)

    def softmax(name):
        powers = np.exp(scores[name].detach().double().numpy() / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    teacher, student = softmax("overall"), softmax("short")
    expected = 0.5 * temperature**2 * (teacher * np.log(teacher / student)).sum(axis=1).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    with_gradient = {name for name, parameter in matcher.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"units.short.{name}" for name in ("projection.weight", "projection.bias", "log_scale")}


def test_training_lowers_its_divergence_from_the_overall_score(tiny_set, tmp_path):
    model, data = model_with({**UNITS, **COMPACT}, lr=3e-3), data_of(tiny_set)

    def divergence():
        scores = scores_of(model, data)
        own, overall = (scores[name].double().softmax(dim=1) for name in ("compact", "overall"))
        return float((overall * (overall / own).log()).sum(dim=1).mean())

    unit = model.matcher.units["compact"]
    start = {name: tensor.clone() for name, tensor in unit.state_dict().items()}
    trainer = make_trainer(tmp_path, max_epochs=15, limit_val_batches=0)
    trainer.fit(model, data)
    data.setup("test")
    trained = divergence()
    unit.load_state_dict(start)  # beside the same overall scores
    assert trained < 0.8 * divergence()


def test_it_has_no_part_in_the_overall_score():
    torch.manual_seed(2)
    weighted = WeightedMatcher(DIMS, {**COMPACT, **UNITS})
    assert list(weighted.weights) == list(UNITS) == list(weighted.combined)
    with pytest.raises(ConfigError, match=r"initial weights of \['compact'\]"):
        WeightedMatcher(DIMS, {**COMPACT, **UNITS}, {"compact": 0.0})
    with pytest.raises(ConfigError, match="has a part in the overall score"):
        Matcher(DIMS, COMPACT)


def test_its_vectors_have_length_1_and_their_products_are_its_scores():
    torch.manual_seed(3)
    matcher = Matcher(DIMS, {**UNITS, **COMPACT})
    of_mentions = matcher.mention(random_features(4, DIMS, {}))
    of_entities = matcher.entity(random_features(7, DIMS, {}))
    queries, keys = matcher.query_vectors(of_mentions, "compact"), matcher.key_vectors(of_entities, "compact")
    assert keys.shape == (7, 8)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(queries @ keys.T, matcher.score(of_mentions, of_entities)["compact"])
    torch.testing.assert_close(
        matcher.key_vectors(of_entities, "text"), matcher.units["text"].key_vector(of_entities["text"])
    )
    # All units' vectors stand for the overall score, of which it is no part.
    alone = Matcher(DIMS, UNITS)
    alone.load_state_dict({k: v for k, v in matcher.state_dict().items() if "compact" not in k})
    assert torch.equal(matcher.key_vectors(of_entities), alone.key_vectors(of_entities))
    assert torch.equal(matcher.query_vectors(of_mentions), alone.query_vectors(of_mentions))
