"""Lightning's own callbacks: those that act before the first step, change the model, or monitor it."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning, BatchSizeFinder, LearningRateFinder

from mimic_pl.runs import load_run, open_run
from tests.slow import some_slow
from tests.training import make_trainer

CALLBACKS = {
    "BatchSizeFinder": {"init_val": 2, "steps_per_trial": 1, "max_trials": 2},
    "LearningRateFinder": {"num_training_steps": 8, "min_lr": 1e-5, "max_lr": 1e-2},
    "GradientAccumulationScheduler": {"scheduling": {0: 2, 1: 1}},
    "StochasticWeightAveraging": {"swa_lrs": 1e-3, "swa_epoch_start": 1},
    "BackboneFinetuning": {"unfreeze_backbone_at_epoch": 1, "backbone_initial_lr": 1e-4},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.25},
    "ModelSummary": {"max_depth": -1},
    "RichModelSummary": {"max_depth": 2},
    "DeviceStatsMonitor": {"cpu_stats": True},
    "Timer": {"duration": "00:01:00:00"},
    "LambdaCallback": {"on_train_start": "watch.on_train_start"},
    "WeightAveraging": {},
    "EMAWeightAveraging": {"decay": 0.9},
    "OnExceptionCheckpoint": {"dirpath": "exception"},
    "ThroughputMonitor": {"batch_size_fn": "watch.batch_size", "window_size": 2},
    "TQDMProgressBar": {"refresh_rate": 1},
    "RichProgressBar": {"refresh_rate": 1},
}

QUICK = {"StochasticWeightAveraging", "BackboneFinetuning", "LambdaCallback", "WeightAveraging"}

USER_MODULE = """
def on_train_start(trainer, model):
    print("training starts")


def batch_size(batch):
    return len(batch["index"])
"""


@pytest.fixture
def model_and_data(trained):
    seed_everything(7, verbose=False)
    return load_run(trained.run)


@pytest.mark.parametrize("name", some_slow(CALLBACKS, CALLBACKS.keys() - QUICK))
def test_a_run_with_the_callback_trains_and_tests(command, trained, tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "watch.py").write_text(USER_MODULE)
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": CALLBACKS[name]}
    shown = {"enable_progress_bar": "ProgressBar" in name, "default_root_dir": str(tmp_path)}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], **shown}}))
    code, out, err = command("fit", "--config", str(trained.config), "--config", "more.yaml", folder=tmp_path)
    assert code == 0, err
    run = open_run(tmp_path / "lightning_logs" / "version_0")
    state = torch.load(run.last_checkpoint, weights_only=True)
    steps = {
        "BatchSizeFinder": 2 * 5,
        "GradientAccumulationScheduler": 2 + 3,
    }  # 20 mentions in batches of 4 and 8
    assert (state["epoch"], state["global_step"]) == (1, steps.get(name, 2 * 3))
    assert ("training starts" in out) == (name == "LambdaCallback")
    code, _, err = command("test")  # with the callback, which the run's configuration names
    assert code == 0, err
    assert json.loads((run.folder / "metrics.json").read_text())["metrics"]["overall"]["mrr"] > 0


def test_the_batch_size_found_is_used(model_and_data, tmp_path):
    model, data = model_and_data
    finder = BatchSizeFinder(init_val=2, steps_per_trial=1, max_trials=2)
    make_trainer(tmp_path, finder, max_epochs=1).fit(model, data)
    assert data.batch_size == 4 and model.trainer.global_step == 5


def test_the_learning_rate_found_is_used(model_and_data, tmp_path):
    """The suggestion is set in every parameter group and is the initial rate of a scheduler."""
    model, data = model_and_data
    model.lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []
    model.on_train_start = lambda: seen.append(({n: t.clone() for n, t in model.state_dict().items()}, model.lr))
    data.batch_size = 2
    finder = LearningRateFinder(num_training_steps=20, min_lr=1e-5, max_lr=1e-2)
    make_trainer(tmp_path, finder, max_epochs=2, limit_val_batches=0).fit(model, data)
    ((weights, rate),) = seen[-1:]
    assert rate == finder.optimal_lr.suggestion() and 1e-5 < rate < 1e-2
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())  # the trial steps are undone
    (optimizer,) = model.trainer.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 4] * len(optimizer.param_groups))


def test_there_is_no_learning_rate_before_there_is_an_optimizer(model_and_data):
    assert not hasattr(model_and_data[0], "lr")


def test_the_encoder_is_frozen_at_first(model_and_data, tmp_path):
    model, data = model_and_data
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_trainer(tmp_path, BackboneFinetuning(unfreeze_backbone_at_epoch=5), max_epochs=1).fit(model, data)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved and not [name for name in moved if name.startswith("encoder.")]
