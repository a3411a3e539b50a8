"""Two real processes (gloo, CPU): Lightning's DDP trains, and evaluation gives what one process gives."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a data set whose splits two processes can not share evenly, and a configuration."""
    folder = tmp_path_factory.mktemp("ddp")
    root = tiny.write_set(folder / "set")
    config = tiny.config(root, folder)
    config["data"]["init_args"]["eval_batch_size"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def run(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mimic_pl", *arguments]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(project):
    version = project / "lightning_logs" / "version_0"
    metrics = json.loads((version / "metrics.json").read_text())
    lines = (version / "predictions.jsonl").read_text().splitlines()
    return metrics, [json.loads(line) for line in lines]


def test_two_processes_train_and_evaluate_as_one(project):
    run(project, "fit", "--config", "config.yaml", "--trainer.devices", "2")
    assert (project / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").is_file()

    run(project, "test", "--trainer.devices", "2")
    metrics_of_two, predictions_of_two = results(project)
    for name in ("metrics.json", "predictions.jsonl"):
        (project / "lightning_logs" / "version_0" / name).unlink()
    run(project, "test")
    metrics, predictions = results(project)

    assert len(predictions) == tiny.SPLITS["test"], "every mention exactly once"
    assert metrics_of_two == metrics
    assert predictions_of_two == predictions
    shutil.rmtree(project / "lightning_logs")
