"""Unit weights fitted on the validation split."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.callbacks import WeightCalibration
from mimic_pl.callbacks.weight_calibration import fit_weights
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.processor import BM25Lexicon, Processor
from mimic_pl.units import CMFU, GlobalCosine, Lexical, WeightedMatcher
from tests import tiny
from tests.training import make_trainer

UNITS = {"similarity": GlobalCosine, "cross_modal": lambda dims: CMFU(dims, 8), "lexical": Lexical}


def problem(scale=1.0, seed=0):
    """A useful unit, a unit of noise, and one that prefers wrong entities."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 60, 25, generator=generator, dtype=torch.float64)
    gold = torch.randint(25, (60,), generator=generator)
    golds = torch.nn.functional.one_hot(gold, 25)
    return torch.stack([scale * (2 * golds + noise[0]), noise[1], noise[2] - 2 * golds]), gold


def negative_log_likelihood(weights, scores, gold):
    return torch.nn.functional.cross_entropy((weights[:, None, None] * scores).sum(dim=0), gold)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_fit_is_the_minimum_over_nonnegative_weights(scale):
    """The Karush-Kuhn-Tucker conditions, which are sufficient for a convex problem."""
    scores, gold = problem(scale)
    weights = fit_weights(scores, gold).requires_grad_()
    negative_log_likelihood(weights, scores, gold).backward()
    spread = scores.std(dim=2).mean(dim=1)
    gradient, share = weights.grad / spread, weights.detach() * spread
    assert share[0] > 0.5 and share[2] < 1e-2
    for slope, size in zip(gradient.tolist(), share.tolist(), strict=True):
        assert abs(slope) < 1e-3 if size > 1e-2 else slope > -1e-3


def parts(tmp_path, **options):
    torch.manual_seed(0)
    data = MELDataModule(str(tiny.write_set(tmp_path / "set")), name="Tiny", num_workers=0, batch_size=8)
    processor = Processor(features={"lexical": BM25Lexicon()})
    return MIMIC(CLIPEncoder(**tiny.ENCODER), processor, UNITS, **options), data


def test_validation_ranks_with_the_fitted_weights_and_checkpoints_store_them(tmp_path):
    model, data = parts(tmp_path, matcher=WeightedMatcher)
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints")
    trainer = make_trainer(tmp_path, WeightCalibration(), checkpoint, max_epochs=1, enable_checkpointing=True)
    trainer.fit(model, data)
    logged = {name: trainer.callback_metrics[f"weight/{name}"].item() for name in UNITS}
    kept = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]["matcher.raw_weights"]
    assert torch.nn.functional.softplus(kept).tolist() == pytest.approx(list(logged.values()), rel=1e-5)
    assert logged != pytest.approx(dict.fromkeys(UNITS, 1 / 3)), "the weights are no longer equal"

    # Without the callback, the same weights give the metrics that validation reported.
    reported = trainer.callback_metrics["val/mrr"].item()
    again, data = parts(tmp_path / "again", matcher=WeightedMatcher)
    again.load_state_dict(model.state_dict())
    trainer = make_trainer(tmp_path)
    trainer.validate(again, data, verbose=False)
    assert trainer.callback_metrics["val/mrr"].item() == pytest.approx(reported)


def test_validate_fits_the_weights_too(tmp_path):
    """Before anything is ranked: the metrics are those of the fitted weights; test changes nothing."""
    model, data = parts(tmp_path, matcher=WeightedMatcher)
    trainer = make_trainer(tmp_path, WeightCalibration())
    trainer.test(model, data, verbose=False)
    assert list(model.matcher.weights.values()) == pytest.approx([1 / 3] * 3)
    (found,) = trainer.validate(model, data, verbose=False)
    fitted = model.matcher.weights
    assert fitted != pytest.approx(dict.fromkeys(UNITS, 1 / 3))
    assert {name: found[f"weight/{name}"] for name in UNITS} == pytest.approx(fitted, rel=1e-5)
    (again,) = make_trainer(tmp_path).validate(model, data, verbose=False)
    assert again["val/mrr"] == pytest.approx(found["val/mrr"])


def test_a_model_that_averages_its_units_has_nothing_to_fit(tmp_path):
    model, data = parts(tmp_path)
    with pytest.raises(ConfigError, match="--model.matcher mimic_pl.units.WeightedMatcher"):
        make_trainer(tmp_path, WeightCalibration(), max_epochs=1).fit(model, data)


def test_set_weights_sets_the_weights():
    matcher = WeightedMatcher(CLIPEncoder(**tiny.ENCODER).dims, UNITS)
    for wanted in ([0.3, 1e-4, 250.0], [1e-6, 2.0, 30.0]):
        matcher.set_weights(torch.tensor(wanted))
        assert list(matcher.weights.values()) == pytest.approx(wanted, rel=1e-4)
    matcher.set_weights(torch.zeros(3))
    assert all(0 < weight < 2e-6 for weight in matcher.weights.values())
