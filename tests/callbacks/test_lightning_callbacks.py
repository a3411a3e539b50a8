"""Callbacks of Lightning's documentation that touch the model, through the program."""

from __future__ import annotations

import json

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from mimic_pl import MIMIC, CLIPEncoder, MELDataModule
from mimic_pl.cli import main
from tests import tiny

CALLBACKS = {
    "BatchSizeFinder": {"mode": "power", "steps_per_trial": 1, "init_val": 2, "max_trials": 2},
    "LearningRateFinder": {"num_training_steps": 5},
    "GradientAccumulationScheduler": {"scheduling": {1: 2}},
    "StochasticWeightAveraging": {"swa_lrs": 1e-3, "swa_epoch_start": 1},
    "EMAWeightAveraging": {"decay": 0.9},
    "LearningRateMonitor": {"logging_interval": "step"},
    "ModelSummary": {"max_depth": 2},
    "RichModelSummary": {"max_depth": 2},
    "DeviceStatsMonitor": {},
    "Timer": {"duration": {"hours": 1}, "interval": "step"},
    "LambdaCallback": {},
    "OnExceptionCheckpoint": {"dirpath": "failed"},
    "TQDMProgressBar": {},
    "RichProgressBar": {},
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_fit_runs_with(name, tmp_path, monkeypatch, tiny_set):
    monkeypatch.chdir(tmp_path)
    config = tiny.config(tiny_set, tmp_path)
    config["trainer"]["enable_progress_bar"] = "ProgressBar" in name
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": CALLBACKS[name]}
    config["trainer"]["callbacks"] = [callback]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "config.yaml"])
    main(["test"])
    metrics = json.loads((tmp_path / "lightning_logs" / "version_0" / "metrics.json").read_text())
    assert metrics["mentions"] == tiny.SPLITS["test"]


def parts(tiny_set):
    return MIMIC(CLIPEncoder(**tiny.ENCODER)), MELDataModule(str(tiny_set), name="Tiny", num_workers=0, batch_size=2)


def trainer(folder, *callbacks, max_epochs=1):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **quiet,
    )


def test_a_learning_rate_is_found_and_taken(tiny_set, tmp_path):
    model, data = parts(tiny_set)
    finder = LearningRateFinder(num_training_steps=40, early_stop_threshold=None)
    own = trainer(tmp_path, finder, max_epochs=6)
    own.fit(model, data)
    assert finder.optimal_lr is not None
    assert model.lr == finder.optimal_lr.suggestion() == own.optimizers[0].param_groups[0]["lr"]


def test_a_batch_size_is_found_and_taken(tiny_set, tmp_path):
    model, data = parts(tiny_set)
    trainer(tmp_path, BatchSizeFinder(init_val=2, max_trials=2, steps_per_trial=1)).fit(model, data)
    assert data.batch_size == 4
