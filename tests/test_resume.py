"""A run that was ended at any moment goes on to the weights of the undisturbed one, to the last bit.

`RESUME_MOMENTS=all` tries every moment, and not a sample of them.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from mimic_pl import MIMIC, CrossDataModule, MELDataModule
from mimic_pl.atomic_checkpoint_io import AtomicCheckpointIO
from mimic_pl.callbacks import ExactResume, HardNegatives, Interrupted, Interruption, WeightCalibration
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.units import CMFU, GlobalCosine, WeightedMatcher
from tests import tiny

UNITS = {"similarity": GlobalCosine, "cross_modal": lambda dims: CMFU(dims, 8)}


def decay(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


class StepwiseMIMIC(MIMIC):
    """Its learning rate falls with each step."""

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameter_groups())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay(optimizer), "interval": "step"}}


# Five batches of training and three of validation an epoch.
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


class Moments(Callback):
    """Counts what happens, and sends the process a signal when it has counted so far."""

    def __init__(self, at=None, number=signal.SIGTERM):
        self.at, self.number, self.count = at, number, 0

    def _pass(self):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(self.number)

    def on_train_epoch_start(self, *args):
        self._pass()

    def on_train_batch_start(self, *args):
        self._pass()

    def on_train_batch_end(self, *args):
        self._pass()

    def on_validation_start(self, *args):
        self._pass()

    def on_validation_batch_end(self, *args):
        self._pass()

    def on_validation_end(self, *args):
        self._pass()

    def on_train_epoch_end(self, *args):
        self._pass()


def fit(folder, root, scenario, resume=None, moments=None, workers=0, every=None):
    """Train two epochs; what is left in the end, and the checkpoints."""
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
    moments = moments or Moments()
    callbacks = [
        *scenario.get("callbacks", list)(),
        moments,
        ExactResume(),
        Interruption(),
        ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=every, save_top_k=-1),
    ]
    trainer = Trainer(
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **scenario.get("trainer", {})},
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    left = {f"weight {name}": tensor for name, tensor in model.state_dict().items()}
    state = trainer.optimizers[0].state_dict()["state"]
    left |= {f"optimizer {i} {name}": tensor for i, values in state.items() for name, tensor in values.items()}
    left["schedule"] = torch.tensor(trainer.lr_scheduler_configs[0].scheduler.get_last_lr())
    loop = trainer.fit_loop
    left["counts"] = torch.tensor(
        [trainer.global_step, trainer.current_epoch, loop.epoch_loop._batches_that_stepped, loop.total_batch_idx]
    )
    return left, moments.count


def counts_on(checkpoint, scenario):
    """Whether there is a step left: Lightning leaves the end of the epoch out if there is none."""
    steps = torch.load(checkpoint, weights_only=True)["global_step"]
    return steps != scenario.get("trainer", {}).get("max_steps")


def same(one, other, counted=True):
    assert one.keys() == other.keys()
    one = {name: tensor for name, tensor in one.items() if counted or name != "counts"}
    assert {name: (tensor, other[name]) for name, tensor in one.items() if not torch.equal(tensor, other[name])} == {}


@pytest.fixture(scope="module")
def undisturbed(tiny_set, tmp_path_factory):
    """What an undisturbed run of a scenario leaves, and how many moments it has."""
    known = {}

    def run(name):
        if name not in known:
            known[name] = fit(tmp_path_factory.mktemp("whole"), tiny_set, SCENARIOS[name])
        return known[name]

    return run


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_signal_at_any_moment(tiny_set, tmp_path, undisturbed, name):
    whole, count = undisturbed(name)
    rng = random.Random(name)
    moments = range(1, count + 1) if os.environ.get("RESUME_MOMENTS") == "all" else rng.sample(range(1, count + 1), 3)
    for at in moments:
        folder, number = tmp_path / str(at), rng.choice([signal.SIGTERM, signal.SIGINT])
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            left, _ = fit(folder, tiny_set, SCENARIOS[name], moments=Moments(at, number))
        except Interrupted as end:
            assert end.code == 128 + number
            last = folder / "checkpoints" / "last.ckpt"
            counted = counts_on(last, SCENARIOS[name])
            left, _ = fit(folder, tiny_set, SCENARIOS[name], resume=last)
        else:
            counted = True
            assert at > count - 3  # it was as good as done
        same(whole, left, counted)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_checkpoint_of_any_step(tiny_set, tmp_path, undisturbed, name):
    whole, _ = undisturbed(name)
    left, _ = fit(tmp_path, tiny_set, SCENARIOS[name], every=1)
    same(whole, left)
    steps = sorted(path for path in (tmp_path / "checkpoints").glob("*.ckpt") if path.name != "last.ckpt")
    taken = steps if os.environ.get("RESUME_MOMENTS") == "all" else random.Random(name).sample(steps, 1)
    for number, checkpoint in enumerate(taken):
        left, _ = fit(tmp_path / str(number), tiny_set, SCENARIOS[name], resume=checkpoint, workers=number % 3)
        same(whole, left, counts_on(checkpoint, SCENARIOS[name]))
