"""Each failure is provoked in a real run of a tiny model, and a healthy run causes no warnings."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mimic_pl import MELDataModule
from mimic_pl.callbacks import FailureMonitor, Whitening
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import NonFiniteLossError
from mimic_pl.losses import UnitConsistentLoss
from mimic_pl.model import MIMIC
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine
from tests import tiny


class Constant(GlobalCosine):
    """A unit at chance, with constant scores."""

    def score(self, mentions, entities):
        return super().score(mentions, entities) * 0

    def pairs(self, mentions, entities):
        return super().pairs(mentions, entities) * 0


class Negligible(VDLU):
    """A unit whose scores are too small to matter."""

    def score(self, mentions, entities):
        return super().score(mentions, entities) * 1e-6

    def pairs(self, mentions, entities):
        return super().pairs(mentions, entities) * 1e-6


class Breaking(GlobalCosine):
    """A unit whose score is NaN from the third training batch on, in one process."""

    process = 0
    calls = 0

    def score(self, mentions, entities):
        score = super().score(mentions, entities)
        self.calls += self.training and len(score) > 2  # not the small batch that initializes DDP
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        return score * math.nan if self.training and self.calls >= 3 and rank == self.process else score


class BreakingInRankOne(Breaking):
    process = 1


def text(dims):
    return TGLU(dims, 8)


def vision(dims):
    return VDLU(dims, 8)


def cross_modal(dims):
    return CMFU(dims, 8)


def faint(dims):
    return Negligible(dims, 8)


PUBLISHED = {"text": text, "vision": vision, "cross_modal": cross_modal}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A validation split of 60 mentions, so that shares are meaningful."""
    root = tiny.write_set(tmp_path_factory.mktemp("monitored") / "Tiny", splits={"train": 24, "dev": 60, "test": 1})
    return lambda: MELDataModule(str(root), name="Tiny", batch_size=8, eval_batch_size=60, num_workers=0)


@pytest.fixture
def fit(make_trainer, data, tmp_path, caplog):
    """Train, and return the warnings and the logged curves."""

    def run(
        units=None,
        monitor=None,
        model=MIMIC,
        change=None,
        lr=3e-3,
        loss=None,
        optimizer=None,
        callbacks=(),
        freeze=False,
        **kwargs,
    ):
        torch.manual_seed(5)
        trained = model(
            CLIPEncoder(**tiny.ENCODER, freeze=freeze, frozen_features=None),
            units=units or PUBLISHED,
            losses={"contrastive": UnitConsistentLoss(mask_false_negatives=True, **(loss or {}))},
            optimizer=optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=lr)),
        )
        if change is not None:
            change(trained)
        settings = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 1}
        settings["logger"] = TensorBoardLogger(tmp_path, "runs")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="mimic_pl"):
            trainer = make_trainer(monitor or FailureMonitor(), *callbacks, **(settings | kwargs))
            trainer.fit(trained, data())
        warnings = [record.getMessage() for record in caplog.records if record.name.startswith("mimic_pl")]
        return warnings, curves(trainer.log_dir) if settings["logger"] else {}

    return run


def curves(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    names = [name for name in accumulator.Tags()["scalars"] if name.startswith("monitor/")]
    return {name.removeprefix("monitor/"): [event.value for event in accumulator.Scalars(name)] for name in names}


@pytest.mark.parametrize(
    "kwargs", [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}], ids=["plain", "bf16"]
)
def test_a_healthy_run_is_silent_and_logs_its_curves(fit, kwargs):
    warnings, found = fit(**kwargs)
    assert warnings == []
    assert set(found) == {
        *(f"gates_near_zero/{gate}" for gate in ("vision/entity_to_mention", "vision/mention_to_entity")),
        *(f"gates_near_zero/{gate}" for gate in ("cross_modal/mention", "cross_modal/entity")),
        *(f"gradient_share/{part}" for part in (*PUBLISHED, "encoder")),
        *(f"{name}/{unit}" for name in ("agreement", "mrr_to_chance") for unit in PUBLISHED),
        *("loss_to_start", "hits@1_rise", "mrr_rise"),
    }
    assert len(found["gates_near_zero/cross_modal/entity"]) == len(found["mrr_rise"]) == 3, "once per validation"
    assert all(math.isfinite(value) for curve in found.values() for value in curve)


def test_units_at_chance(fit):
    warnings, found = fit({"text": text, "blind": Constant})
    at_chance = [line for line in warnings if "no better than chance" in line]
    assert [line.partition(":")[0] for line in at_chance] == ["Epoch 1", "Epoch 2"]
    assert "The overall score has collapsed to text alone: blind ranks no better than chance" in at_chance[0]
    random = sum(1 / rank for rank in range(1, 13)) / 12
    assert f"a random ranking of 12 entities has {1 / 12:.4f} and {random:.4f}" in at_chance[0]
    assert found["mrr_to_chance/text"][-1] > 1.5


def test_an_overall_ranking_equal_to_that_of_one_unit(fit):
    warnings, found = fit({"text": text, "faint": faint}, FailureMonitor(vanishing_share=0, chance_margin=0))
    lines = [line for line in warnings if "The overall ranking is" in line]
    assert lines and all("is text's: 100% of the mentions" in line for line in lines)
    assert set(found["agreement/text"]) == {1} and max(found["agreement/faint"]) < 0.9


def test_units_that_agree_are_not_a_collapse(fit):
    warnings, found = fit({"text": GlobalCosine, "again": GlobalCosine})
    assert not any("The overall ranking is" in line for line in warnings)
    assert min(found["agreement/text"]) >= 0.9


def test_a_model_of_one_unit_cannot_collapse(fit):
    warnings, _ = fit({"text": text})
    assert warnings == []


def test_closed_gates(fit):
    def close(model):
        torch.nn.init.zeros_(model.matcher.units["vision"].entity_to_mention.gate.weight)
        torch.nn.init.zeros_(model.matcher.units["vision"].entity_to_mention.gate.bias)
        torch.nn.init.zeros_(model.matcher.units["cross_modal"].gate.weight)
        torch.nn.init.constant_(model.matcher.units["cross_modal"].gate.bias, 0.06)

    warnings, found = fit(change=close, lr=1e-6, max_epochs=2)
    lines = [line for line in warnings if "The gate" in line]
    assert len(lines) == 2, "once per epoch"
    assert all("The gate vision/entity_to_mention is closed: 100% of its values are within 0.05" in x for x in lines)
    assert found["gates_near_zero/vision/entity_to_mention"] == [1, 1]
    assert found["gates_near_zero/cross_modal/mention"] == [0, 0]


def test_hits_that_stall_while_mrr_rises(fit):
    class Approaching(MIMIC):
        """Golds rise in rank but never reach the top."""

        def rank(self, batch, split):
            ranking = super().rank(batch, split)
            rank = torch.full_like(ranking.ranks["overall"], max(2, 5 - self.current_epoch))
            return ranking._replace(ranks={**ranking.ranks, "overall": rank})

    warnings, found = fit(monitor=FailureMonitor(stall_validations=3), model=Approaching)
    (line,) = [line for line in warnings if "H@1 stalls" in line]
    assert line.startswith("Epoch 2") and "MRR went from 0.2000 to 0.3333, H@1 from 0.0000 to 0.0000" in line
    assert found["mrr_rise"] == pytest.approx([0, 0.05, 1 / 3 - 0.2], abs=1e-6)


def test_a_diverging_loss(fit):
    ascend = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.05, maximize=True)}
    warnings, found = fit(monitor=FailureMonitor(divergence_batches=4, explosion=1e9), max_epochs=2, **ascend)
    assert any("was above its initial value for" in line for line in warnings)
    assert found["loss_to_start"][-1] > 1.2
    warnings, _ = fit(monitor=FailureMonitor(divergence_batches=10**6, explosion=1.5), max_epochs=2, **ascend)
    lines = [line for line in warnings if "The loss explodes" in line]
    assert 1 <= len(lines) <= 2 and "times the" in lines[0]


def test_the_loss_does_not_depend_on_gradient_accumulation(fit):
    starts = []
    for accumulated in (1, 2):
        monitor = FailureMonitor()
        fit(monitor=monitor, accumulate_grad_batches=accumulated, lr=0.0, max_epochs=1, logger=False)
        starts.append(monitor.state_dict()["start"])
    assert starts[0] == pytest.approx(starts[1], rel=0.3), "not divided by the number of accumulated batches"


def test_a_non_finite_loss_stops_the_run_and_names_its_term(fit):
    with pytest.raises(NonFiniteLossError, match=r"at step 2 \(epoch 0, batch 2\): first in its terms broken\."):
        fit({"text": text, "broken": Breaking}, log_every_n_steps=50)
    warnings, _ = fit({"text": text, "broken": Breaking}, FailureMonitor(stop_on_non_finite=False), limit_val_batches=0)
    assert any("The loss is not finite at step 2 (epoch 0, batch 2)" in line for line in warnings)
    assert any("The gradient of" in line and "is not finite" in line for line in warnings)


def test_a_non_finite_loss_in_one_process_stops_all(fit):
    with pytest.raises(Exception, match=r"at step 2 \(epoch 1, batch 0\): first in its terms broken\."):
        fit({**PUBLISHED, "broken": BreakingInRankOne}, devices=2, strategy="ddp_fork", max_epochs=2, logger=False)


def test_a_unit_without_gradient(fit):
    class Detached(GlobalCosine):
        def score(self, mentions, entities):
            return super().score(mentions, entities).detach()

    warnings, found = fit({"text": text, "cut": Detached}, max_epochs=2)
    lines = [line for line in warnings if "The weights of cut had no gradient at all" in line]
    assert [line.partition(":")[0] for line in lines] == ["Epoch 0", "Epoch 1"]
    assert found["gradient_share/cut"] == [0] * 6


def test_a_vanishing_gradient(fit):
    units = {"text": text, "faint": faint}
    warnings, _ = fit(units, max_epochs=1, log_every_n_steps=1)
    assert any("The gradient of faint has vanished" in line for line in warnings)

    def freeze(model):
        model.matcher.units["faint"].requires_grad_(False)
        model.encoder.requires_grad_(False)

    warnings, found = fit(units, change=freeze, max_epochs=1)
    assert not any("gradient" in line for line in warnings), "frozen parameters are intentional"
    assert set(found) & {"gradient_share/faint", "gradient_share/encoder"} == set()


def white(dims):
    return GlobalCosine(dims, pretrained=True, centered=True, projection=8)


def test_frozen_towers_are_not_reported_if_no_unit_reads_the_projections_on_top(fit):
    warnings, found = fit({"white": white}, freeze=True, callbacks=[Whitening()])
    assert warnings == [] and "gradient_share/encoder" not in found
    assert "gradient_share/white" in found
    _, found = fit({"vision": vision}, freeze=True)
    assert min(found["gradient_share/encoder"]) > 0, "this unit does read them"


@pytest.mark.parametrize(("lr", "worse"), [(1.0, True), (1e-3, False)])
def test_a_unit_that_training_has_made_worse(fit, lr, worse):
    """A projection that starts from a whitening, with a learning rate a thousand times too large."""
    before = {"freeze": True, "callbacks": [Whitening()], "num_sanity_val_steps": -1}
    warnings, found = fit({"white": white}, lr=lr, **before)
    lines = [line for line in warnings if "Training has made white worse than it was before" in line]
    assert [line.partition(":")[0] for line in lines] == (["Epoch 0", "Epoch 1", "Epoch 2"] if worse else [])
    assert len(found["mrr_to_start/white"]) == 3
    assert max(found["mrr_to_start/white"]) < 0.8 if worse else min(found["mrr_to_start/white"]) > 1
    assert worse or warnings == []


def test_the_start_is_that_of_no_training(fit):
    monitor = FailureMonitor(start_margin=0)
    before = {"freeze": True, "callbacks": [Whitening()], "num_sanity_val_steps": -1}
    warnings, found = fit({"white": white, "text": GlobalCosine}, monitor, lr=0.0, **before)
    assert {name for name in found if name.startswith("mrr_to_start")} == {"mrr_to_start/white", "mrr_to_start/text"}
    assert set(found["mrr_to_start/white"]) == set(found["mrr_to_start/text"]) == {1.0}
    assert not any("worse" in line for line in warnings)


def test_the_state_survives_a_resume(fit, tmp_path):
    first = FailureMonitor()
    fit(monitor=first, enable_checkpointing=True, max_epochs=2, num_sanity_val_steps=-1)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["FailureMonitor"]
    second = FailureMonitor()
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    assert saved["start"] == first.state_dict()["start"] and len(saved["history"]) >= 1
    assert set(saved["before_training"]) == set(PUBLISHED)
    del saved["before_training"]  # as in checkpoints of older versions
    second.load_state_dict(saved)
    assert second.state_dict()["before_training"] == {}


def test_other_models_and_a_disabled_monitor(make_trainer, given_scores, records, fit):
    make_trainer(FailureMonitor(), max_epochs=2).fit(given_scores(), records)
    warnings, found = fit({"text": text, "blind": Constant}, FailureMonitor(enabled=False), max_epochs=1)
    assert (warnings, found) == ([], {})
