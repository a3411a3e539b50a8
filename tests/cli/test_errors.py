"""User errors: one short paragraph, an exit code, no traceback."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from mimic_pl.cli.usage import short_message

WRONG = {
    "misspelt option of a nested class": (
        ["--model.encoder.pretraine", "x"],
        2,
        "model.encoder: CLIPEncoder has no option 'pretraine'. Did you mean 'pretrained'?",
    ),
    "misspelt class": (
        ["--model.encoder", "CLIPEncodr"],
        2,
        "model.encoder: no class 'CLIPEncodr' is known. Did you mean",
    ),
    "misspelt option of a unit": (
        ["--model.units.text.hiden_dim", "3"],
        2,
        "model.units: TGLU has no option 'hiden_dim'. Did you mean 'hidden_dim'?",
    ),
    "unknown option of a unit": (
        ["--model.units.vision", '{"class_path": "VDLU", "init_args": {"colour": 3}}'],
        2,
        "model.units: VDLU has no option 'colour'. Choose one of: gated, hidden_dim, kernel.",
    ),
    "unknown option of an optimizer": (
        ["--model.optimizer", '{"class_path": "torch.optim.AdamW", "init_args": {"colour": 3}}'],
        2,
        "model.optimizer: AdamW has no option 'colour'. Choose one of: amsgrad, betas",
    ),
    "misspelt unit": (
        ["--model.units.text", "TGLUU"],
        2,
        "model.units: no class 'TGLUU' is known. Did you mean 'TGLU'?",
    ),
    "misspelt data class": (["--data", "WikiMELL"], 2, "data: no class 'WikiMELL' is known. Did you mean 'WikiMEL'?"),
    "unknown option": (["--trainer.max_epochz", "3"], 2, "--trainer.max_epochz"),
    "wrong type": (["--data.batch_size", "many"], 2, "data.batch_size: Expected a"),
    "no value": (["--trainer.max_epochs"], 2, "--trainer.max_epochs: expected one argument"),
    "no such configuration": (["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
    "no such data": (["--data.root", "nowhere/at/all"], 3, "nowhere/at/all"),
    "template without a field": (
        ["--model.processor.entity_template", "no field"],
        3,
        "The text template 'no field' names no field.",
    ),
    "invalid loss": (
        [
            "--model.losses.contrastive",
            '{"class_path": "mimic_pl.losses.UnitConsistentLoss", "init_args": {"temperature": 0}}',
        ],
        3,
        "temperature",
    ),
    "no such checkpoint": (["--ckpt_path", "nowhere.ckpt"], 5, "nowhere.ckpt. Pass the path of a file."),
    "best without run": (
        ["--ckpt_path", "best", "--trainer.default_root_dir", "."],
        3,
        "There is no training run in",
    ),
}


@pytest.mark.parametrize(("options", "code", "text"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options(command, trained, tmp_path, options, code, text):
    found, _, err = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
    assert found == code
    message = next(line for line in err.splitlines() if line.startswith("error: "))
    assert text in message
    assert "Traceback" not in err
    assert "usage:" not in err
    assert len(message) < 500
    assert not (tmp_path / "lightning_logs").exists()  # it failed before the run started


def test_no_such_encoder_checkpoint(command, trained, tmp_path):
    config = yaml.safe_load(trained.config.read_text())
    config["model"]["init_args"]["encoder"]["init_args"] = {"pretrained": "./no/such/folder"}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    code, _, err = command("fit", "--config", "wrong.yaml", folder=tmp_path)
    assert code == 3
    assert "The encoder's checkpoint folder './no/such/folder' does not exist" in err
    assert "Traceback" not in err


def test_unknown_key_in_a_file(command, trained, tmp_path):
    config = tmp_path / "wrong.yaml"
    config.write_text(trained.config.read_text().replace("batch_size: 8", "batchsize: 8"))
    code, _, err = command("fit", "--config", str(config), folder=tmp_path)
    assert code == 2
    assert "has no option 'batchsize'. Did you mean 'batch_size'?" in err


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["fit"], 3, "mimic-pl fit --config"),
        (["ft"], 2, "There is no command 'ft'. Did you mean 'fit'?"),
        (["test"], 3, "There is no training run in"),
        (["test", "--run", "nowhere"], 3, "is not a training run"),
        (["doctor", "--config", "nowhere.yaml"], 3, "'nowhere.yaml' does not exist"),
    ],
)
def test_wrong_commands(command, tmp_path, args, code, text):
    found, _, err = command(*args, folder=tmp_path)
    assert found == code
    assert err.startswith("error: ")
    assert text in err


def test_weights_that_do_not_fit(command, trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    code, _, err = command("test", "--model.encoder.image_dim", "4", folder=tmp_path)
    assert code == 5
    assert "The checkpoint does not fit the configured model" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("place", [0, 1, 2, None])
def test_debug_shows_the_traceback(command, tmp_path, monkeypatch, place):
    """By an option anywhere on the command line or by the environment; the exit code is unchanged."""
    for args, kind, code in ((["fit", "--bogus"], "ArgumentError", 2), (["report", "nowhere"], "ConfigError", 3)):
        if place is None:
            monkeypatch.setenv("MIMIC_PL_DEBUG", "1")
        else:
            args.insert(place, "--debug")
        found, _, err = command(*args, folder=tmp_path)
        *traceback, message = err.strip().splitlines()
        assert found == code and message.startswith("error: ")
        assert traceback[0].startswith("Traceback") and any(f"{kind}: " in line for line in traceback)


def test_a_bug_in_user_code_is_reported_with_its_location(command, trained, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "from mimic_pl import MIMIC\n\n\nclass Model(MIMIC):\n    def training_step(self, batch, batch_idx):\n"
        "        return batch['nowhere']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    args = ["fit", "--config", str(trained.config), "--model", "theirs.Model"]
    code, _, err = command(*args, folder=tmp_path)
    assert code == 1 and "Traceback" not in err
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "unexpected KeyError (theirs.py, line 6): 'nowhere'" in message and "--debug" in message
    assert "Traceback" in command("--debug", *args, folder=tmp_path)[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_errors_of_the_trainer(command, trained, tmp_path):
    code, _, err = command("fit", "--config", str(trained.config), "--trainer.accelerator", "cuda", folder=tmp_path)
    assert code == 3 and "can not run on your system" in err and "Traceback" not in err


def test_flat_parser_messages_are_unchanged():
    assert short_message("argument --x: expected one argument") == "argument --x: expected one argument"
    assert short_message("") == ""


def test_an_unknown_parser_problem_keeps_its_message():
    tree = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Subtypes: [A, B]\n  Errors:\n'
        "    - Problem with given class_path 'no.such.Class':\n        Parser key \"size\":\n"
        "          Something new went wrong\n    - Expected a <class 'NoneType'>\n  Given value type: <class 'X'>\n"
        "  Given value: X(y=1)"
    )
    assert short_message(tree) == "model.size: Something new went wrong"


def test_an_image_that_fails_in_a_loader_process_is_one_paragraph(command, trained, tmp_path):
    shutil.copytree(trained.root, tmp_path / "set")
    for image in (tmp_path / "set" / "mention_images").iterdir():
        image.write_bytes(b"no image")
    options = [
        "--data.root",
        str(tmp_path / "set"),
        "--model.processor.image_policy",
        "error",
        "--data.num_workers",
        "1",
    ]
    code, _, err = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
    assert code == 4
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert (
        message.startswith("error: The image ")
        and "mention_images" in message
        and "--model.processor.image_policy blank" in message
    )
    assert "Traceback" not in err
