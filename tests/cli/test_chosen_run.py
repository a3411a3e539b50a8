"""Which run and checkpoint a command works on, what it does without validation, and where it writes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from tests.results import read_jsonl


def versions(home):
    return sorted(path.name for path in (home / "lightning_logs").iterdir())


def test_last_is_a_run_with_the_same_model_data_and_seed(command, home, tmp_path):
    config = home / "tiny.yaml"
    other = shutil.copytree(yaml.safe_load(config.read_text())["data"]["init_args"]["root"], tmp_path / "Tiny")
    fit = ["fit", "--config", "tiny.yaml", "--ckpt_path", "last"]
    different = {
        "seed_everything was 43, and is 44": ["--seed_everything", "44"],
        f"and is {other}": ["--data.root", str(other)],
        "model.optimizer.lr was 0.001, and is 0.5": ["--model.optimizer.lr", "0.5"],
    }
    for number, (difference, options) in enumerate(different.items(), start=1):
        code, out, err = command(*fit, *options, "--trainer.max_epochs", "1", folder=home)
        assert code == 0, err
        assert "with this configuration to resume: training starts from scratch." in out and difference in out
        assert versions(home) == [f"version_{i}" for i in range(number + 1)]
    (home / "lightning_logs" / "version_3" / "config.yaml").write_text("no: [YAML")
    code, out, _ = command(*fit, "--trainer.max_epochs", "3")
    assert code == 0 and "Resuming run lightning_logs/version_0, checkpoint last.ckpt." in out
    assert "Using run lightning_logs/version_0" in command("test")[1], "resumed last"
    code, _, err = command("fit", "--ckpt_path", "last", "--data.batch_size", "4")
    assert code == 3 and "cannot be resumed with other settings: data.batch_size was 8, and is 4." in err
    assert len(versions(home)) == 4


def test_last_in_a_file_resumes(command, home):
    config = {**yaml.safe_load((home / "tiny.yaml").read_text()), "ckpt_path": "last"}
    (home / "tiny.yaml").write_text(yaml.safe_dump(config))
    code, out, err = command("fit", "--config", "tiny.yaml", "--trainer.max_epochs", "3", folder=home)
    assert code == 0 and "Resuming run lightning_logs/version_0, checkpoint last.ckpt." in out, err
    assert versions(home) == ["version_0"]


def test_a_checkpoint_of_another_run_is_used_in_a_new_folder(command, home, tmp_path):
    run = home / "lightning_logs" / "version_0"
    other = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "other.ckpt")
    for number, options in enumerate(([], ["--run", str(run)]), start=1):
        code, out, err = command("test", "--ckpt_path", str(other), *options, folder=home)
        assert code == 0 and "in a new folder" in out, err
        assert not (run / "metrics.json").exists()
        written = json.loads((home / "lightning_logs" / f"version_{number}" / "metrics.json").read_text())
        assert written["checkpoint"] == str(other)
    code, _, err = command("robustness", "--ckpt_path", str(other))
    assert code == 3 and "is not a checkpoint of the run" in err

    options = ["--trainer.max_epochs", "3"]
    code, out, err = command("fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *options)
    assert code == 0 and "in a new run." in out, err
    state = torch.load(run.with_name("version_3") / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 2
    kept = [saver["best_model_path"] for saver in state["callbacks"].values() if "best_k_models" in saver]
    assert all("version_3" in path for path in kept), kept


@pytest.mark.slow
def test_a_copied_run_leaves_the_original_alone(command, home, tmp_path):
    original = home / "lightning_logs" / "version_0"
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    copy = shutil.copytree(original, tmp_path / "elsewhere" / "lightning_logs" / "version_0")
    (tmp_path / "elsewhere" / "tiny.yaml").write_text((home / "tiny.yaml").read_text())
    options = ["--config", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "4"]
    code, _, err = command("fit", *options, folder=tmp_path / "elsewhere")
    assert code == 0, err
    state = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (best,) = [saver for saver in state.values() if saver.get("monitor") == "val/mrr" and "best_k_models" in saver]
    assert best["dirpath"] == str(copy / "checkpoints")
    assert [str(path) for path in copy.glob("checkpoints/epoch*")] == [best["best_model_path"]], "the older was deleted"
    assert command("test", "--run", str(copy))[0] == 0
    assert json.loads((copy / "metrics.json").read_text())["checkpoint"].startswith("checkpoints/epoch=")
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("options", ["limit_val_batches 0", "check_val_every_n_epoch 9", "max_steps 2"])
def test_training_without_validation(command, trained, tmp_path, options):
    option, value = options.split()
    root = ["--trainer.default_root_dir", str(tmp_path)]
    if option == "limit_val_batches":
        shutil.copytree(trained.root, tmp_path / "Tiny")
        (tmp_path / "Tiny" / "Tiny_dev.json").unlink()
        root += ["--data.root", str(tmp_path / "Tiny")]
    fit = ["fit", "--config", str(trained.config), *root, f"--trainer.{option}", value]
    code, out, err = command(*fit, folder=tmp_path)
    assert code == 0, err
    assert ("This training does not validate" in out) == (option != "max_steps") and "Last checkpoint: " in out
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]
    code, out, err = command("test")
    assert code == 0 and "checkpoint last.ckpt: no best one was saved" in out, err


@pytest.mark.slow
def test_a_part_of_the_mentions_is_counted_and_kept_apart(command, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run = home / "lightning_logs" / "version_0"
    limited = ["--data.eval_batch_size", "2"]
    for devices in ([], ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]):
        code, out, _ = command("test", "--trainer.limit_test_batches", "2", *limited, *devices, folder=home)
        part = json.loads((run / "metrics.partial.json").read_text())
        count = 8 if devices else 4
        assert code == 0 and (devices or f"{count} of 9 mentions, ranked among 12 entities" in out)
        assert (part["mentions"], part["mentions_in_split"]) == (count, 9)
        lines = read_jsonl(run / "predictions.partial.jsonl")
        assert len(lines) == count
        mrr = sum(1 / line["rank"]["overall"] for line in lines) / count
        assert part["metrics"]["overall"]["mrr"] == pytest.approx(mrr, abs=1e-6)
    assert not (run / "metrics.json").exists() and not (run / "predictions.jsonl").exists()
    code, _, err = command("report", str(run))
    assert code == 3 and "was tested on only some of the mentions" in err
    assert command("test")[0] == 0
    whole = (run / "metrics.json").read_bytes(), (run / "predictions.jsonl").read_bytes()
    assert command("test", "--trainer.limit_test_batches", "0.5", *limited)[0] == 0
    assert ((run / "metrics.json").read_bytes(), (run / "predictions.jsonl").read_bytes()) == whole
    assert command("report", str(run))[0] == 0

    assert "4 of 7 mentions" in command("validate", "--trainer.limit_val_batches", "2", *limited)[1]
    assert "2 of 9 mentions" in command("test", "--trainer.fast_dev_run", "true", *limited)[1]
    assert command("predict", "--trainer.limit_predict_batches", "1", *limited)[0] == 0
    assert len(read_jsonl(run / "links.partial.jsonl")) == 2 and not (run / "links.jsonl").exists()
    code, _, err = command("robustness", "--trainer.limit_test_batches", "1")
    assert code == 3 and "robustness evaluates the whole split" in err


def test_a_named_version_is_never_overwritten(command, trained, tmp_path):
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs", "version": "a"}}
    config = yaml.safe_load(trained.config.read_text())
    config["trainer"] |= {"logger": logger, "max_epochs": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    for command_ in ("fit", "fit", "test"):
        assert command(command_, "--config", "tiny.yaml", folder=tmp_path)[0] == 0
    assert sorted(path.name for path in (tmp_path / "logs" / "lightning_logs").iterdir()) == ["a", "a-0", "a-1"]


@pytest.mark.slow
def test_checkpoints_of_two_trainings_are_not_mixed(command, trained, tmp_path):
    options = ["--checkpoint.dirpath", "all", "--trainer.max_epochs", "1"]
    fit = ["fit", "--config", str(trained.config), *options]
    assert command(*fit, folder=tmp_path)[0] == 0
    code, _, err = command(*fit)
    assert code == 3 and "contains checkpoints of another training" in err and versions(tmp_path) == ["version_0"]
    assert "Using run lightning_logs/version_0" in command("test")[1]
    assert command(*fit, "--ckpt_path", "last", "--trainer.max_epochs", "2")[0] == 0
    assert versions(tmp_path) == ["version_0"]


def test_a_requeued_slurm_job_resumes_its_own_run(command, home, monkeypatch):
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "tiny", "SLURM_PROCID": "0"}
    for name, value in {**slurm, "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    fit = ["fit", "--config", "tiny.yaml", "--trainer.max_epochs"]
    for epochs, seed, folder in (("1", "43", "version_7"), ("1", "44", "version_7-0"), ("2", "43", "version_7")):
        code, out, err = command(*fit, epochs, "--seed_everything", seed, folder=home)
        assert code == 0, err
        assert (f"Resuming run lightning_logs/{folder}, checkpoint last.ckpt." in out) == (epochs == "2")
        state = torch.load(home / "lightning_logs" / folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["epoch"] == int(epochs) - 1
    assert versions(home) == ["version_0", "version_7", "version_7-0"]


def test_a_run_of_another_version_is_named(command, home):
    config = home / "lightning_logs" / "version_0" / "config.yaml"
    text = config.read_text().replace("batch_size: 8", "batch_size: 8\n    no_longer_an_option: 1", 1)
    config.write_text(text.replace("# mimic-pl 0.1.0", "# mimic-pl 0.0.1"))
    code, _, err = command("test", folder=home)
    assert code == 2 and "no_longer_an_option" in err and "was started by 0.0.1 of mimic-pl" in err, err
