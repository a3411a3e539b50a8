"""Runs, results and reports that are interrupted, deleted or written twice; wrong and damaged checkpoints of a run."""

from __future__ import annotations

import os
import shutil
import signal
from itertools import cycle, product

import pytest
import torch
import yaml

from mimic_pl import MIMIC
from mimic_pl.callbacks import ExactResume, predictions
from mimic_pl.checkpoints.atomic_io import AtomicCheckpointIO
from mimic_pl.files import acquire_lock
from mimic_pl.report import open_finished
from mimic_pl.runs import load_run, open_run
from tests.faults.catalogue import check_command_error, expect_fault
from tests.faults.test_machine import fill
from tests.launch import RunningCommand, needs_fork
from tests.report.conftest import write_run
from tests.results import read_jsonl
from tests.slow import some_slow
from tests.training import make_trainer


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run."""
    return open_run(shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0"))


def flip_a_byte(path):
    weight = torch.load(path, weights_only=True)["state_dict"]["matcher.units.text.query.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 5] ^= 4
    path.write_bytes(content)


COMMANDS = {
    "last": ["--ckpt_path", "last"],
    "path": ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"],
    "home": ["--ckpt_path=~/lightning_logs/version_0/checkpoints/last.ckpt"],
    "URL": ["--ckpt_path", "file://{folder}/lightning_logs/version_0/checkpoints/last.ckpt"],
    "URL in a file": ["--config", "url.yaml"],
    "path in a file": ["--config", "path.yaml"],
    "last in a file": ["--config", "last.yaml"],
    "hpc in a file": ["--config", "hpc.yaml"],
}


STAGES_QUICK = dict(zip(COMMANDS, cycle(["test", "fit"]), strict=False)) | {"last in a file": "fit"}
"""Each way with one command; the other pairs of ways and commands are slow tests."""


@pytest.mark.parametrize(
    ("way", "stage"),
    some_slow(product(COMMANDS, ("test", "fit")), {*product(COMMANDS, ("test", "fit"))} - STAGES_QUICK.items()),
)
def test_a_damaged_checkpoint_however_it_is_given(command, run, tmp_path, monkeypatch, way, stage):
    monkeypatch.setenv("HOME", str(tmp_path))
    last = run.folder / "checkpoints" / "last.ckpt"
    flip_a_byte(last)
    given = {"url": f"file://{last}", "path": str(last), "last": "last", "hpc": "hpc"}
    config = yaml.safe_load(run.config.read_text())
    for name, checkpoint in given.items():
        config["trainer"]["default_root_dir"] = None
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**config, "ckpt_path": checkpoint}))
    options = [option.format(folder=tmp_path) for option in COMMANDS[way]]
    code, _, err = command(stage, *options, folder=tmp_path)
    message = check_command_error("test_a_damaged_checkpoint_however_it_is_given", code, err)
    assert "last.ckpt" in message
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


WAYS = {
    "load_run": lambda path: load_run(path.parent.parent, "last"),
    "load_from_checkpoint": MIMIC.load_from_checkpoint,
    "load_from_checkpoint, URL": lambda path: MIMIC.load_from_checkpoint(f"file://{path}"),
    "from_published": lambda path: MIMIC.from_published(path, "none"),
    "from_published, URL": lambda path: MIMIC.from_published(f"file://{path}", "none"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_checkpoint_in_python(run, way):
    flip_a_byte(run.folder / "checkpoints" / "last.ckpt")
    with expect_fault("test_a_damaged_checkpoint_in_python"):
        WAYS[way](run.folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("options", [{"callbacks": [ExactResume()]}, {"plugins": [AtomicCheckpointIO()]}])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_damaged_checkpoint_through_a_trainer(trained, run, options, stage):
    model, data = load_run(trained.run)
    path = run.folder / "checkpoints" / "last.ckpt"
    flip_a_byte(path)
    trainer = make_trainer(run.folder, *options.get("callbacks", ()), plugins=options.get("plugins"), max_epochs=3)
    for given in (path, f"file://{path}"):
        with expect_fault("test_a_damaged_checkpoint_through_a_trainer"):
            getattr(trainer, stage)(model, data, ckpt_path=given, weights_only=False)


@pytest.mark.parametrize("url", ["https://localhost/last.ckpt", "s3://bucket/last.ckpt", "registry:entity:model"])
def test_a_checkpoint_on_another_machine(command, run, tmp_path, url):
    for stage in ("test", "fit"):
        code, _, err = command(stage, "--config", str(run.config), "--ckpt_path", url, folder=tmp_path)
        assert url in check_command_error("test_a_checkpoint_on_another_machine", code, err)
    with expect_fault("test_a_checkpoint_on_another_machine"):
        MIMIC.load_from_checkpoint(url)


@pytest.mark.slow
@needs_fork
def test_a_kill_between_predictions_and_metrics(command, trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    assert command("test", folder=tmp_path)[0] == 0

    def kill_before_metrics():
        predictions.write_metrics = lambda *args: os.kill(os.getpid(), signal.SIGKILL)

    killed = RunningCommand(
        ["test", "--ckpt_path", "last", "--predictions.top_k", "3"], tmp_path, before=kill_before_metrics
    )
    assert killed.exit_codes() == [-signal.SIGKILL], killed.output()
    assert len(read_jsonl(run / "predictions.jsonl")[0]["candidates"]) == 3, "the new predictions, the old metrics"
    code, _, err = command("report", str(run))
    assert str(run) in check_command_error("test_a_kill_between_predictions_and_metrics", code, err)
    assert command("test")[0] == 0 and command("report", str(run))[0] == 0


DELETE = """
import shutil
from pathlib import Path


def on_train_epoch_start(trainer, model):
    if trainer.current_epoch == 1:
        shutil.rmtree(trainer.default_root_dir)
"""


@pytest.mark.parametrize("options", [[], ["--trainer.enable_checkpointing", "false"]])
def test_the_folder_of_a_run_is_deleted_during_training(command, trained, tmp_path, monkeypatch, options):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deletes.py").write_text(DELETE)
    hook = {"on_train_epoch_start": "deletes.on_train_epoch_start"}
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": hook}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    fit = ["fit", "--config", str(trained.config), "--config", "more.yaml", *options]
    code, _, err = command(*fit, "--trainer.logger", "false", folder=tmp_path)
    message = check_command_error("test_the_folder_of_a_run_is_deleted_during_training", code, err)
    assert "version_0" in message
    code, _, err = command(*fit)  # TensorBoard's writer may notice it first
    assert code == 10 and "version_0" in err


def test_a_report_on_a_full_disk(command, small_disk, tmp_path):
    runs = [write_run(tmp_path / name / "version_0", [1] * 30 + [2] * 10, curve={1: 0.4}) for name in ("a", "b")]
    assert command("report", str(runs[0]), "--output", str(small_disk / "report"))[0] == 0
    before = {path: path.read_bytes() for path in (small_disk / "report").iterdir()}
    fill(small_disk, 8192)
    code, _, err = command("report", *map(str, runs), "--output", str(small_disk / "report"))
    check_command_error("test_a_report_on_a_full_disk", code, err)
    assert before.keys() == set((small_disk / "report").iterdir())
    kept = [path.name for path, content in before.items() if path.read_bytes() == content]
    assert {"report.md", "report.csv"} <= set(kept)


def test_two_reports_into_one_folder(command, tmp_path):
    run = write_run(tmp_path / "a" / "version_0", [1, 2])
    lock = acquire_lock(tmp_path / "report", ".report.lock")
    code, _, err = command("report", str(run), folder=tmp_path)
    check_command_error("test_two_reports_into_one_folder", code, err)
    lock.release()
    assert command("report", str(run))[0] == 0


@needs_fork
@pytest.mark.slow
def test_a_run_is_tested_while_it_trains(trained, tmp_path):
    """The test's results are complete, and training is not disturbed."""
    options = ["--trainer.max_epochs", "20", "--early_stopping.patience", "99"]
    fit = RunningCommand(["fit", "--config", str(trained.config), *options], tmp_path)
    run = tmp_path / "lightning_logs" / "version_0"
    fit.wait_for(lambda: (run / "checkpoints" / "last.ckpt").exists())
    test = RunningCommand(["test", "--ckpt_path", "last"], tmp_path, name="test")
    assert test.exit_codes() == [0], test.output()
    assert len(open_finished(run).predictions.ids) == 9
    assert fit.exit_codes() == [0], fit.output()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 19
