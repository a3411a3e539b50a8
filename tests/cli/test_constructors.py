"""An exception of a constructor that a configuration names is one paragraph with the class's name and the reason."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml

from mimic_pl.cli.problems import constructing
from mimic_pl.errors import ConfigError, MachineError

THEIRS = """
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from mimic_pl import MIMIC, CLIPEncoder, Encoder, MELDataModule, TGLU


def fail():
    raise {error}


class Unit(TGLU):
    def __init__(self, dims):
        fail()


class Loss(torch.nn.Module):
    def __init__(self):
        fail()


class Own(CLIPEncoder):
    def __init__(self):
        fail()


class Model(MIMIC):
    def __init__(self, encoder: Encoder):
        fail()


class Data(MELDataModule):
    def __init__(self, root: str):
        fail()


class Called(Callback):
    def __init__(self):
        fail()


class Logger(CSVLogger):
    def __init__(self):
        fail()


class Optimizer(torch.optim.SGD):
    def __init__(self, params):
        fail()
"""


def set_in(config, place, value):
    *path, last = place.split(".")
    for key in path:
        config = config[key]
    config[last] = value


PLACES = {
    "Unit": ("model.init_args.units.text", None),
    "Loss": ("model.init_args.losses", "x"),
    "Own": ("model.init_args.encoder", None),
    "Model": ("model", "encoder"),
    "Data": ("data", "root"),
    "Called": ("trainer.callbacks", []),
    "Logger": ("trainer.logger", None),
    "Optimizer": ("model.init_args.optimizer", None),
}


@pytest.fixture
def their(trained, tmp_path, monkeypatch):
    """Write a configuration with one of their classes, which raises an error."""

    def write(name, error):
        (tmp_path / "constructors_of_theirs.py").write_text(THEIRS.replace("{error}", error))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(__import__("sys").modules, "constructors_of_theirs", raising=False)
        config = yaml.safe_load(trained.config.read_text())
        place, how = PLACES[name]
        own = {"class_path": f"constructors_of_theirs.{name}"}
        if how == "encoder":
            own["init_args"] = {"encoder": config["model"]["init_args"]["encoder"]}
        elif how == "root":
            own["init_args"] = {"root": str(trained.root)}
        set_in(config, place, [own] if how == [] else {"x": own} if how == "x" else own)
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
        return tmp_path

    return write


def error_of(command, folder, *options):
    code, _, err = command("fit", "--config", "wrong.yaml", *options, folder=folder)
    assert "Traceback" not in err
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    return code, message


@pytest.mark.parametrize("name", PLACES)
def test_every_part_of_a_configuration(command, their, name):
    code, message = error_of(command, their(name, 'ValueError("5 is not divisible by 2,\\nthe heads")'))
    assert code == 3
    assert f"error: {name} cannot be built from its arguments: 5 is not divisible by 2, the heads. (" in message
    assert "(ValueError in constructors_of_theirs.py, line 10; --debug shows the traceback)" in message


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ('KeyError("width")', "Own cannot be built from its arguments: the key 'width' is missing. (KeyError in"),
        ("AssertionError()", "Own cannot be built from its arguments: AssertionError. (AssertionError in"),
        (
            'FileNotFoundError(2, "No such file", "words.txt")',
            "Own cannot be built from its arguments: [Errno 2] No such",
        ),
        (
            '__import__("no_such_package")',
            "is not installed: No module named 'no_such_package'. Install it: pip install no_",
        ),
    ],
)
def test_every_kind_of_exception(command, their, error, text):
    code, message = error_of(command, their("Own", error))
    assert code == 3 and text in message


def test_a_value_that_a_library_refuses(command, trained, tmp_path):
    code, _, err = command("fit", "--config", str(trained.config), "--trainer.strategy", "bogus", folder=tmp_path)
    assert code == 3 and "Trainer cannot be built from its arguments: You selected an invalid strategy" in err


@pytest.mark.parametrize(
    ("options", "package"),
    [
        (["--trainer.logger", "CometLogger"], "comet-ml"),
        (["--trainer.strategy", "deepspeed"], "deepspeed"),
        (
            ["--trainer.plugins", "lightning.pytorch.plugins.BitsandbytesPrecision", "--trainer.plugins.mode", "nf4"],
            "bitsandbytes",
        ),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(command, trained, tmp_path, options, package):
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    code, _, err = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 3 and "pip install -U" in message and package in message and "Subtypes" not in message


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("trainer.max_epoch", 3, "fit has no option 'trainer.max_epoch'. Did you mean 'max_epochs'?"),
        ("checkpoint", {"monitr": "x"}, "fit has no option 'checkpoint.monitr'. Did you mean 'monitor'?"),
        ("ckpt_pth", "x", "fit has no option 'ckpt_pth'. Did you mean 'ckpt_path'?"),
        ("early_stopping", {"zzz": 1}, "fit has no option 'early_stopping.zzz'. Choose one of: check_finite"),
    ],
)
def test_an_unknown_key_names_its_file_and_the_nearest_key(command, trained, tmp_path, key, value, text):
    config = yaml.safe_load(trained.config.read_text())
    set_in(config, key, value)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    code, message = error_of(command, tmp_path)
    assert code == 2 and f"error: wrong.yaml: {text}" in message


def test_an_unknown_logger_suggests_loggers(command, trained, tmp_path):
    code, _, err = command("fit", "--config", str(trained.config), "--trainer.logger", "CSVLoger", folder=tmp_path)
    assert code == 2 and "trainer.logger: no class 'CSVLoger' is known. Did you mean 'CSVLogger'?" in err
    code, _, err = command("fit", "--config", str(trained.config), "--trainer.logger", "Neptune", folder=tmp_path)
    assert code == 2 and "TGLU" not in err


def test_a_layer_larger_than_memory_is_an_error_of_the_machine(command, trained, tmp_path):
    for option, name in (("model.encoder.image_dim", "CLIPEncoder"), ("model.units.text.hidden_dim", "TGLU")):
        code, _, err = command("fit", "--config", str(trained.config), f"--{option}={10**12}", folder=tmp_path)
        (message,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert code == 8 and message.startswith(f"error: Out of memory while {name} is built: "), message
        assert "Subtypes" not in message


def test_errors_of_the_machine_in_a_constructor_stay_what_they_are():
    with pytest.raises(MachineError, match="Access denied"), constructing("Logger"):
        raise PermissionError(13, "Permission denied", "runs")
    with pytest.raises(ConfigError, match="inner"), constructing("Model"):
        raise ConfigError("inner")
