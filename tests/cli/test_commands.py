"""The commands, from the command line to the files that they write."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import mimic_pl
from mimic_pl.cli import main
from mimic_pl.cli.program import COMMANDS, STAGES
from mimic_pl.runs import load_run, open_run
from tests.launch import run_python
from tests.results import read_jsonl


def versions(home):
    return sorted(path.name for path in (home / "lightning_logs").iterdir())


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())["metrics"]


def test_fit_writes_a_run(trained):
    names = {path.name for path in trained.run.iterdir()}
    assert {"config.yaml", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in open_run(trained.run).checkpoints} == {
        "last.ckpt",
        open_run(trained.run).best_checkpoint.name,
    }
    saved = yaml.safe_load((trained.run / "config.yaml").read_text())
    assert saved["data"]["init_args"]["root"] == str(trained.root)
    assert saved["seed_everything"] == 43


def test_test_without_arguments_uses_the_newest_run(command, home):
    run = home / "lightning_logs" / "version_0"
    config = (run / "config.yaml").read_bytes()
    code, out, _ = command("test", folder=home)
    best = open_run(run).best_checkpoint
    assert code == 0
    assert f"Using run lightning_logs/version_0, checkpoint {best.name}." in out
    assert "overall" in out and "cross_modal" in out
    assert versions(home) == ["version_0"]
    assert (run / "config.yaml").read_bytes() == config
    lines = read_jsonl(run / "predictions.jsonl")
    assert [line["id"] for line in lines] == [f"test-{i}" for i in range(9)]

    # The same metrics from the loaded run, evaluated by another Trainer.
    model, data = load_run(run)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (logged,) = trainer.test(model, data, verbose=False)
    for name, value in metrics(run)["overall"].items():
        assert value == pytest.approx(logged[f"test/{name}"], abs=1e-6)
    ranks = [line["rank"]["overall"] for line in lines]
    assert metrics(run)["overall"]["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 9, abs=1e-6)


def test_two_processes_give_the_metrics_of_one(command, home):
    run = home / "lightning_logs" / "version_0"
    assert command("test", folder=home)[0] == 0
    alone = metrics(run), (run / "predictions.jsonl").read_text()
    assert command("test", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork")[0] == 0
    assert metrics(run) == alone[0]  # nine mentions in two processes: none is counted twice
    ids = [line["id"] for line in read_jsonl(run / "predictions.jsonl")]
    assert ids == [f"test-{i}" for i in range(9)]


def test_predict_and_validate(command, home):
    code, out, _ = command("validate", "--run", "lightning_logs/version_0", folder=home)
    assert code == 0
    assert "validation" in out
    assert command("predict")[0] == 0
    lines = (home / "lightning_logs" / "version_0" / "links.jsonl").read_text().splitlines()
    assert len(lines) > 0
    assert versions(home) == ["version_0"]


def test_an_explicit_configuration_writes_into_a_new_folder(command, home):
    code, out, _ = command("test", "--config", "tiny.yaml", "--trainer.default_root_dir", str(home), folder=home)
    assert code == 0
    assert "No --ckpt_path" in out
    assert versions(home) == ["version_0", "version_1"]
    assert (home / "lightning_logs" / "version_1" / "metrics.json").is_file()

    best = ["--ckpt_path", "best", "--trainer.default_root_dir", str(home)]
    code, out, _ = command("test", "--config", "tiny.yaml", *best)
    assert code == 0
    assert "Using run lightning_logs/version_0" in out
    assert versions(home) == ["version_0", "version_1", "version_2"]


def test_the_run_of_a_named_checkpoint(command, home):
    shutil.copytree(home / "lightning_logs" / "version_0", home / "lightning_logs" / "version_7")
    checkpoint = home / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    code, out, _ = command("test", "--ckpt_path", str(checkpoint), folder=home)
    assert code == 0
    assert "Using run lightning_logs/version_0" in out
    assert (home / "lightning_logs" / "version_0" / "metrics.json").is_file()
    assert not (home / "lightning_logs" / "version_7" / "metrics.json").exists()


def test_callbacks_are_configurable(command, trained, tmp_path):
    options = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "5"]
    patience = ["--early_stopping.patience", "1", "--early_stopping.min_delta", "10", "--checkpoint.save_top_k", "0"]
    assert command("fit", "--config", str(trained.config), *options, *patience, folder=tmp_path)[0] == 0
    run = open_run(tmp_path / "lightning_logs" / "version_0")
    assert [path.name for path in run.checkpoints] == ["last.ckpt"]
    # No validation improves by 10, so the second is the last.
    callbacks = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]
    assert [state["stopped_epoch"] for state in callbacks.values() if "stopped_epoch" in state] == [1]


def test_training_without_logger_and_checkpoints(command, trained, tmp_path):
    options = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.max_epochs", "1"]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert command("fit", "--config", str(trained.config), *options, *root, folder=tmp_path)[0] == 0
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_runs_below_the_home_folder(command, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--trainer.default_root_dir", "~/runs", "--trainer.max_epochs", "1"]
    for number in range(2):
        code, _, err = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
        assert code == 0, err
        assert open_run(tmp_path / "runs" / "lightning_logs" / f"version_{number}").checkpoints
    assert not (tmp_path / "~").exists()


LIGHT = """
import sys
from mimic_pl.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code, line
    heavy = sorted({"torch", "lightning", "transformers", "torchmetrics", "timm"} & sys.modules.keys())
    assert not heavy, (line, heavy)
    print("<end>")
"""


def test_help_does_not_import_torch(tmp_path):
    lines = ["--help", "--version", *(f"{name} --help" for name in COMMANDS)]
    result = run_python(["-c", LIGHT, *lines], tmp_path)
    assert result.returncode == 0, result.stderr
    shown = dict(zip(lines, result.stdout.split("<end>\n")[:-1], strict=True))
    assert shown.pop("--version").split() == ["mimic-pl", mimic_pl.__version__]
    assert all(f"  {name} " in shown["--help"] for name in COMMANDS)
    del shown["--help"]
    for line, text in shown.items():
        assert f"mimic-pl {line.split()[0]}" in text
        assert len(text.splitlines()) < 90, "help has to be short"


@pytest.mark.parametrize(
    "options",
    ["--data.help RichpediaMEL", "--trainer.logger.help TensorBoardLogger", "--model.encoder.help CLIPEncoder"],
)
def test_help_of_a_class_needs_no_run(options, command, tmp_path):
    code, out, err = command("test", *options.split(), folder=tmp_path)
    assert code == 0, err
    assert options.split()[1] in out


@pytest.mark.parametrize("name", STAGES)
def test_help_of_a_stage_lists_existing_options(name, command):
    code, complete, _ = command(name, "--help", "--all")
    assert code == 0 and "--trainer.barebones" in complete
    _, short, _ = command(name, "--help")
    assert f"mimic-pl {name} --help --all" in short
    known = {class_: set(inspect.signature(getattr(mimic_pl, class_)).parameters) for class_ in ("MIMIC", "Processor")}
    known |= {"data": set(inspect.signature(mimic_pl.MELDataModule).parameters)}
    for option in re.findall(r"^  --([\w.]+)", short, flags=re.M):
        group, *rest = option.split(".")
        if group == "data" and rest:
            assert rest[0] in known["data"], option
        elif group == "model" and rest:
            assert rest[0] in known["MIMIC"], option
            assert rest[0] != "processor" or rest[1] in known["Processor"]
        else:
            assert f"--{option} " in complete or f"--{option}\n" in complete, option


def test_completion_script(command):
    pytest.importorskip("shtab")
    code, out, _ = command("--print_completion", "shtab-bash")
    assert code == 0
    assert "mimic-pl" in out


def test_console_entry(tmp_path):
    """In its own process: one line on stderr, the exit code of the error, nothing else."""
    result = run_python(["-m", "mimic_pl", "test"], tmp_path)
    assert result.returncode == 3
    assert result.stderr.startswith("error: There is no training run in ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_main_reads_sys_argv_by_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mimic-pl", "--help"])
    main()
    assert "doctor" in capsys.readouterr().out


def test_the_hint_after_fit_names_the_run(command, trained, tmp_path):
    options = ["--trainer.default_root_dir", str(tmp_path / "elsewhere"), "--trainer.max_epochs", "1"]
    code, out, _ = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
    assert code == 0
    hint = out.split("To evaluate it on the test split: mimic-pl ")[1].splitlines()[0]
    code, out, _ = command(*hint.split(), folder=tmp_path)
    assert code == 0 and "Using run elsewhere/lightning_logs/version_0" in out


def test_overlays_add_units_and_losses(command, trained, tmp_path):
    overlays = {
        "image": {
            "units+": {"image": {"class_path": "mimic_pl.units.GlobalCosine", "init_args": {"modality": "image"}}}
        },
        "plain": {"units+": {"plain": {"class_path": "mimic_pl.units.GlobalCosine"}}},
        "symmetric": {"losses+": {"symmetric": {"class_path": "mimic_pl.losses.SymmetricLoss"}}},
    }
    options = ["fit", "--config", str(trained.config)]
    for name, arguments in overlays.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"init_args": arguments}}))
        options += ["--config", str(tmp_path / f"{name}.yaml")]
    options += ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    code, _, err = command(*options, folder=tmp_path)
    assert code == 0, err
    model, _ = load_run(tmp_path / "lightning_logs" / "version_0", "last")
    assert set(model.matcher.units) == {"text", "vision", "cross_modal", "image", "plain"}
    assert list(model.losses) == ["contrastive", "symmetric"]
    assert model.matcher.units["text"].query.out_features == 8, "units of the configuration are unchanged"
