"""A run that is interrupted at any point resumes to exactly the weights of an uninterrupted one.

`RESUME_POINTS=all` tries every point, not just a sample.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from mimic_pl import MIMIC, CrossDataModule, MELDataModule
from mimic_pl.callbacks import ExactResume, HardNegatives, Interrupted, Interruption, WeightCalibration
from mimic_pl.checkpoints.atomic_io import AtomicCheckpointIO
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.units import CMFU, GlobalCosine, WeightedMatcher
from tests import tiny
from tests.training import make_trainer

UNITS = {"similarity": GlobalCosine, "cross_modal": lambda dims: CMFU(dims, 8)}


def decay(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


class StepwiseMIMIC(MIMIC):
    """Its learning rate decays with every step."""

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameter_groups())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay(optimizer), "interval": "step"}}


# Five training batches and three validation batches per epoch.
SCENARIOS = {
    "plain": {},
    "hard negatives, average": {"callbacks": lambda: [HardNegatives(3), EMAWeightAveraging(decay=0.8)]},
    "calibrated, accumulated": {
        "callbacks": lambda: [WeightCalibration()],
        "model": {"matcher": WeightedMatcher},
        "trainer": {"accumulate_grad_batches": 2},
    },
    "every second epoch": {"trainer": {"check_val_every_n_epoch": 2}},
    "within epochs": {
        "callbacks": lambda: [WeightCalibration(), EMAWeightAveraging(decay=0.8)],
        "model": {"matcher": WeightedMatcher},
        "trainer": {"val_check_interval": 0.5},
    },
    "max_steps, accumulated": {"trainer": {"max_steps": 8, "max_epochs": -1, "accumulate_grad_batches": 2}},
    "part of the data, no validation": {"trainer": {"limit_train_batches": 3, "limit_val_batches": 0}},
    "several sets": {"sets": 2},
}


class InterruptionPoints(Callback):
    """Counts hook calls as possible interruption points, and raises a signal at one of them."""

    def __init__(self, at=None, number=signal.SIGTERM):
        self.at, self.number, self.count = at, number, 0

    def _count(self):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(self.number)

    def on_train_epoch_start(self, *args):
        self._count()

    def on_train_batch_start(self, *args):
        self._count()

    def on_train_batch_end(self, *args):
        self._count()

    def on_validation_start(self, *args):
        self._count()

    def on_validation_batch_end(self, *args):
        self._count()

    def on_validation_end(self, *args):
        self._count()

    def on_train_epoch_end(self, *args):
        self._count()


def fit(folder, root, scenario, resume=None, points=None, workers=0, every=None):
    """Train two epochs. Returns the final state and the number of interruption points."""
    seed_everything(7, verbose=False)
    encoder = copy.deepcopy(tiny.ENCODER)
    encoder["config"]["text_config"]["attention_dropout"] = 0.2
    optimizer = lambda params: torch.optim.AdamW(params, lr=1e-2)  # noqa: E731
    options = {"optimizer": optimizer, "lr_scheduler": decay, **scenario.get("model", {})}
    kind = MIMIC if scenario.get("trainer", {}).get("accumulate_grad_batches", 1) == 1 else StepwiseMIMIC
    model = kind(CLIPEncoder(**encoder), units=UNITS, **options)
    loading = {"batch_size": 4, "eval_batch_size": 3, "num_workers": workers, "modality_dropout": 0.2}
    data = MELDataModule(str(root), name="Tiny", **loading)
    if scenario.get("sets"):
        others = [shutil.copytree(root, folder / f"other{i}", dirs_exist_ok=True) for i in range(2)]
        parts = [MELDataModule(str(other), name="Tiny", **loading) for other in others]
        data = CrossDataModule(parts, data)
    points = points or InterruptionPoints()
    callbacks = [
        *scenario.get("callbacks", list)(),
        points,
        ExactResume(),
        Interruption(),
        ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=every, save_top_k=-1),
    ]
    trainer_options = {"max_epochs": 2, "enable_checkpointing": True, **scenario.get("trainer", {})}
    trainer = make_trainer(folder, *callbacks, plugins=[AtomicCheckpointIO()], **trainer_options)
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    state = {f"weight {name}": tensor for name, tensor in model.state_dict().items()}
    optimizer_state = trainer.optimizers[0].state_dict()["state"]
    state |= {
        f"optimizer {i} {name}": tensor for i, values in optimizer_state.items() for name, tensor in values.items()
    }
    state["schedule"] = torch.tensor(trainer.lr_scheduler_configs[0].scheduler.get_last_lr())
    loop = trainer.fit_loop
    state["counts"] = torch.tensor(
        [trainer.global_step, trainer.current_epoch, loop.epoch_loop._batches_that_stepped, loop.total_batch_idx]
    )
    return state, points.count


def counters_match(checkpoint, scenario):
    """Whether steps remain: Lightning skips the end of the epoch if none do, which changes the counters."""
    steps = torch.load(checkpoint, weights_only=True)["global_step"]
    return steps != scenario.get("trainer", {}).get("max_steps")


def assert_same_state(one, other, compare_counts=True):
    assert one.keys() == other.keys()
    one = {name: tensor for name, tensor in one.items() if compare_counts or name != "counts"}
    assert {name: (tensor, other[name]) for name, tensor in one.items() if not torch.equal(tensor, other[name])} == {}


@pytest.fixture(scope="module")
def uninterrupted(tiny_set, tmp_path_factory):
    """Final state of an uninterrupted run of a scenario, and its number of interruption points."""
    results = {}

    def run(name):
        if name not in results:
            results[name] = fit(tmp_path_factory.mktemp("expected"), tiny_set, SCENARIOS[name])
        return results[name]

    return run


@pytest.mark.parametrize("number", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_signal_at_any_point(tiny_set, tmp_path, uninterrupted, name, number):
    expected, count = uninterrupted(name)
    rng = random.Random(f"{name} {number}")
    everywhere = range(1, count + 1)
    points = everywhere if os.environ.get("RESUME_POINTS") == "all" else rng.sample(everywhere, number)
    for at in points:
        folder, sent = tmp_path / str(at), rng.choice([signal.SIGTERM, signal.SIGINT])
        before = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
        try:
            state, _ = fit(folder, tiny_set, SCENARIOS[name], points=InterruptionPoints(at, sent))
        except Interrupted as end:
            assert end.code == 128 + sent
            last = folder / "checkpoints" / "last.ckpt"
            compare_counts = counters_match(last, SCENARIOS[name])
            state, _ = fit(folder, tiny_set, SCENARIOS[name], resume=last)
        else:
            compare_counts = True
            assert at > count - 3  # training had practically finished
        assert_same_state(expected, state, compare_counts)
        assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_checkpoint_of_any_step(tiny_set, tmp_path, uninterrupted, name):
    expected, _ = uninterrupted(name)
    state, _ = fit(tmp_path, tiny_set, SCENARIOS[name], every=1)
    assert_same_state(expected, state)
    steps = sorted(path for path in (tmp_path / "checkpoints").glob("*.ckpt") if path.name != "last.ckpt")
    taken = steps if os.environ.get("RESUME_POINTS") == "all" else random.Random(name).sample(steps, 1)
    for number, checkpoint in enumerate(taken):
        state, _ = fit(tmp_path / str(number), tiny_set, SCENARIOS[name], resume=checkpoint, workers=number % 3)
        assert_same_state(expected, state, counters_match(checkpoint, SCENARIOS[name]))
