"""A run is one folder, which every command finds, whatever its loggers; loggers are the real ones, offline."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys

import pytest
import torch
import yaml

from mimic_pl.evaluated_run import read_curve
from mimic_pl.runs import open_run
from tests.launch import environment

LOGGERS = "lightning.pytorch.loggers"


def logger(kind, **arguments):
    return {"class_path": f"{LOGGERS}.{kind}", "init_args": arguments}


def case(name, given, place, package=None, slow=True):
    marks = [pytest.mark.slow] if slow else []
    if package is not None:
        missing = importlib.util.find_spec(package) is None
        marks.append(pytest.mark.skipif(missing, reason=f"{package} is not installed"))
    return pytest.param(given, place, marks=marks, id=name)


CSV = logger("CSVLogger", save_dir="logs")
TENSORBOARD = logger("TensorBoardLogger", save_dir="elsewhere")
WANDB = logger("WandbLogger", offline=True)
MLFLOW = logger("MLFlowLogger", tracking_uri="file:mlruns")

CASES = [
    case("none", False, "lightning_logs/version_0"),
    case("two", [CSV, TENSORBOARD], "logs/lightning_logs/version_0", slow=False),
    case("named", logger("CSVLogger", save_dir="logs", name="tiny", version="a"), "logs/tiny/a"),
    case("without a name", logger("TensorBoardLogger", save_dir="logs", name=""), "logs/version_0"),
    case("W&B", WANDB, "lightning_logs/version_0", "wandb"),
    case("W&B, CSV", [WANDB, CSV], "logs/lightning_logs/version_0", "wandb"),
    case("MLflow", MLFLOW, "lightning_logs/version_0", "mlflow"),
]


@pytest.mark.parametrize(("given", "place"), CASES)
def test_all_files_of_a_run_are_in_one_folder(command, trained, tmp_path, monkeypatch, given, place):
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = yaml.safe_load(trained.config.read_text())
    config["trainer"] |= {"logger": given, "max_epochs": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", "--config", "tiny.yaml"]

    code, out, err = command(*fit, folder=tmp_path)
    assert code == 0, err
    folder = tmp_path / place
    first = (folder / "config.yaml").read_bytes()
    hint = out.split("To evaluate it on the test split: mimic-pl ")[1].splitlines()[0].split()
    for args in (hint, ["predict", *hint[1:]]):
        code, _, err = command(*args)
        assert code == 0, err
    names = {path.name for path in folder.iterdir() if not path.name.startswith((".", "events.", "hparams"))}
    wanted = {"config.yaml", "checkpoints", "metrics.json", "predictions.jsonl", "links.jsonl"}
    assert names - {"metrics.csv"} == wanted
    assert (folder / "config.yaml").read_bytes() == first

    code, out, err = command(*fit, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert code == 0 and f"Resuming run {place}, checkpoint last.ckpt." in out, err
    assert torch.load(open_run(folder).last_checkpoint, weights_only=True)["epoch"] == 1
    if (folder / "metrics.csv").exists():
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        assert {int(row["epoch"]) for row in rows if row["val/mrr"]} >= {0, 1}, "the rows of the first epoch are kept"

    resumed = (folder / "config.yaml").read_bytes()
    assert command(*fit)[0] == 0
    assert (folder / "config.yaml").read_bytes() == resumed, "another run has a folder of its own"
    code, _, err = command("report", str(folder))
    assert code == 0, err
    if (folder / "metrics.csv").exists():
        scores = torch.load(open_run(folder).last_checkpoint, weights_only=True)["callbacks"]
        (best,) = [state for state in scores.values() if "best_k_models" in state and state["monitor"]]
        curve = dict(read_curve(folder, "val/mrr"))
        assert curve.keys() == {1, 2} and max(curve.values()) == pytest.approx(float(best["best_model_score"]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_without_an_account(trained, tmp_path):
    """In a process without settings of an earlier run, and without the key that ``wandb login`` stores at home."""
    given = {name: value for name, value in environment().items() if not name.startswith("WANDB_")}
    fit = ["fit", "--config", str(trained.config), "--trainer.logger", "WandbLogger", "--trainer.max_epochs", "1"]
    for mode, expected in (("online", 3), ("offline", 0)):
        env = {**given, "HOME": str(tmp_path), "WANDB_MODE": mode}
        done = subprocess.run(
            [sys.executable, "-m", "mimic_pl", *fit], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr
        message = "error: Weights & Biases cannot be used: No API key configured."
        assert (message in done.stderr and "WANDB_MODE=offline" in done.stderr) == (mode == "online")
