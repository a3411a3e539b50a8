"""Numbers of the configuration are checked before anything loads."""

from __future__ import annotations

import copy
import math
import re
from typing import Union

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl import MIMIC
from mimic_pl.cli.config_checks import check_config
from mimic_pl.cli.parser import Parser
from mimic_pl.data.base import BaseDataModule
from mimic_pl.errors import ConfigError

ABSENT = ["--model.encoder.pretrained", "nowhere/at/all"]
"""An encoder whose loading fails: what is refused with another message is refused before it."""

WRONG = {
    "data.batch_size": "0",
    "data.eval_batch_size": "-1",
    "data.entity_batch_size": "0",
    "data.num_workers": "-1",
    "data.train_fraction": ".nan",
    "data.modality_dropout": "1.5",
    "data.seed": "-3",
    "model.ranker.top_k": "-1",
    "model.processor.max_pixels": "0",
    "model.encoder.text_length": "0",
    "model.encoder.image_dim": "-8",
    "model.units.text.hidden_dim": "0",
    "predictions.top_k": "0",
    "panels.num_samples": "-1",
    "monitor.gradient_looks": "0",
    "early_stopping.patience": "-1",
    "seed_everything": "-1",
    "trainer.accumulate_grad_batches": "0",
    "trainer.check_val_every_n_epoch": "0",
    "trainer.gradient_clip_val": "-1.0",
}


DEFAULTS = {"ranker": "mimic_pl.ranking.Ranker", "processor": "mimic_pl.processor.Processor"}


@pytest.fixture(scope="module")
def written(trained):
    """The configuration of a run, with all defaults."""
    return yaml.safe_load((trained.run / "config.yaml").read_text())


@pytest.mark.parametrize(("key", "value"), WRONG.items(), ids=WRONG.keys())
def test_a_number_out_of_its_range(written, key, value):
    changed = copy.deepcopy(written)
    place, (*names, last) = changed, key.split(".")
    for name in names:
        if place[name] is None:
            place[name] = {"class_path": DEFAULTS[name], "init_args": {}}
        place = place[name].get("init_args", place[name])
    place[last] = yaml.safe_load(value)
    with pytest.raises(ConfigError, match=rf"{re.escape(key)} is {value.strip('.')}; it must be"):
        check_config(Namespace(changed))


def test_the_command_line_refuses_a_number_before_the_encoder_loads(command, trained, tmp_path):
    code, _, err = command("fit", "--config", str(trained.config), *ABSENT, "--data.batch_size=0", folder=tmp_path)
    assert code == 3 and "data.batch_size is 0; it must be" in err, err
    assert not (tmp_path / "lightning_logs").exists()


OBJECTS = {
    "model.optimizer.lr is inf": {"--model.optimizer": ("torch.optim.AdamW", {"lr": math.inf})},
    "Invalid learning rate: -1.0": {"--model.optimizer": ("torch.optim.AdamW", {"lr": -1.0})},
    "Expected positive integer total_steps": {
        "--model.lr_scheduler": ("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.1, "total_steps": -5})
    },
    "model.losses.more.temperature is 0": {
        "--model.losses.more": ("mimic_pl.losses.SymmetricLoss", {"temperature": 0})
    },
    "Blur: strength is 200": {"--data.degradation": ("mimic_pl.data.degradation.Blur", {"strength": 200})},
}


@pytest.mark.parametrize(("text", "option"), OBJECTS.items(), ids=OBJECTS.keys())
def test_the_command_line_refuses_numbers_of_objects_before_the_encoder_loads(command, trained, tmp_path, text, option):
    ((name, (path, arguments)),) = option.items()
    given = [f"{name}={path}", *(f"{name}.{key}={value}".replace("=inf", "=.inf") for key, value in arguments.items())]
    code, _, err = command("fit", "--config", str(trained.config), *ABSENT, *given, folder=tmp_path)
    assert code == 3 and text in err, err


def test_a_configuration_in_range_passes(trained):
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(MIMIC, "model", subclass_mode=True)
    parser.add_lightning_class_args(BaseDataModule, "data", subclass_mode=True)
    options = ["--data", "MELDataModule", "--data.root", str(trained.root), "--model", "MIMIC"]
    check_config(parser.parse_args([*options, "--model.encoder", "CLIPEncoder"]))


def test_one_is_an_integer_whatever_the_order_of_a_union():
    """To typing, both orders are equal: which one Lightning has depends on what was imported before it."""

    class Limits(Callback):
        def __init__(self, most: Union[float, int, None] = None, least: float | int = 0.5) -> None: ...  # noqa: UP007

    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(Limits, "limits")
    for text, number in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("2", 2)):
        found = parser.parse_args([f"--limits.most={text}", f"--limits.least={text}"]).limits
        assert (found.most, type(found.most)) == (found.least, type(found.least)) == (number, type(number))
    assert parser.parse_args(["--limits.most=null"]).limits.most is None
