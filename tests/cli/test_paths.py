"""Paths from the home folder and from the working directory mean the same in every option and file."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from jsonargparse import Namespace

from mimic_pl.home import expand_home
from mimic_pl.runs import load_run, open_run
from tests.results import read_jsonl


@pytest.fixture
def files(trained, tmp_path, monkeypatch):
    """A home folder with data and mentions to link; the working directory is below it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(trained.root, tmp_path / "sets" / "Tiny")
    shutil.copy(trained.root / "Tiny_test.json", tmp_path / "mentions.json")
    (tmp_path / "here").mkdir()
    return tmp_path


@pytest.mark.parametrize("prefix", ["~/", pytest.param("../", marks=pytest.mark.slow)])
def test_every_path_of_a_configuration(command, trained, files, prefix):
    config = yaml.safe_load(trained.config.read_text())
    config["data"]["init_args"] |= {"root": f"{prefix}sets/Tiny", "image_cache": f"{prefix}cache"}
    config["data"]["init_args"] |= {"predict_file": f"{prefix}mentions.json"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": f"{prefix}logs"}}
    config["trainer"] |= {"max_epochs": 1, "logger": logger, "default_root_dir": f"{prefix}unused"}
    config["checkpoint"] = {"dirpath": f"{prefix}checkpoints"}
    (files / "tiny.yaml").write_text(yaml.safe_dump(config))
    code, _, err = command("fit", f"--config={prefix}tiny.yaml", folder=files / "here")
    assert code == 0, err
    run = open_run(files / "logs" / "lightning_logs" / "version_0")
    assert [path.parent for path in run.checkpoints] == [files / "checkpoints"] * 2
    assert list((files / "cache").iterdir()), "the image cache"
    assert load_run(f"{prefix}logs/lightning_logs/version_0")[1].entities

    folder = f"{prefix}logs/lightning_logs/version_0"
    for options in ([f"--run={folder}"], [f"--run={folder}", f"--ckpt_path={prefix}checkpoints/last.ckpt"]):
        assert command("test", *options)[0] == 0
    assert command("predict", f"--run={folder}")[0] == 0
    assert len(read_jsonl(run.folder / "links.jsonl")) == 9
    assert command("report", folder, f"--output={prefix}report", f"--errors={folder}")[0] == 0
    assert (files / "report" / "errors.html").is_file()
    exact = ["--only", "exact_name", f"--output={prefix}baselines"]
    assert command("baselines", f"--config={prefix}tiny.yaml", *exact)[0] == 0
    assert (files / "baselines" / "exact_name" / "metrics.json").is_file()
    assert list((files / "here").iterdir()) == []
    assert {path.name for path in files.iterdir()} == {
        "baselines", "cache", "checkpoints", "here", "logs", "mentions.json", "report", "sets", "tiny.yaml",
    }  # fmt: skip


def test_runs_below_the_home_folder_are_found_from_a_file(command, trained, files):
    config = yaml.safe_load(trained.config.read_text())
    config["trainer"] |= {"default_root_dir": "~/runs", "max_epochs": 1}
    (files / "tiny.yaml").write_text(yaml.safe_dump(config))
    for epochs in ("1", "2"):
        fit = ["fit", "--config", "~/tiny.yaml", "--ckpt_path", "last", "--trainer.max_epochs", epochs]
        assert command(*fit, folder=files / "here")[0] == 0
    run = open_run(files / "runs" / "lightning_logs" / "version_0")
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 1
    assert "Using run" in command("test", "--trainer.default_root_dir=~/runs")[1]


def test_the_encoder_of_a_configuration(command, trained, files):
    config = yaml.safe_load(trained.config.read_text())
    config["model"]["init_args"]["encoder"]["init_args"] = {"pretrained": "~/clip"}
    (files / "tiny.yaml").write_text(yaml.safe_dump(config))
    code, _, err = command("fit", "--config", "~/tiny.yaml", folder=files / "here")
    assert code == 3 and f"{files}/clip" in err


def test_home_is_resolved_at_any_depth(monkeypatch):
    monkeypatch.setenv("HOME", "/folder/of/me")
    config = Namespace(a="~/x", b=[{"c": "~", "d": ("~/y", 1, None)}], e=Namespace(f="local-dir:~/z", g="~ and ~/x"))
    assert expand_home(config).as_dict() == {
        "a": "/folder/of/me/x",
        "b": [{"c": "/folder/of/me", "d": ("/folder/of/me/y", 1, None)}],
        "e": {"f": "local-dir:/folder/of/me/z", "g": "~ and ~/x"},
    }
