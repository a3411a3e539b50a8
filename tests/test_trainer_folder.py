"""Callbacks write where the Trainer saves checkpoints, whatever its logger."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from mimic_pl.trainer_folder import trainer_folder
from tests.training import make_trainer


class Hosted(Logger):
    """A logger of a hosted service, which has one folder for all runs."""

    name = "project"
    save_dir = "."

    def __init__(self, version):
        self._version = version

    @property
    def version(self):
        return self._version

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


LOGGERS = {
    "none": lambda: False,
    "TensorBoard": lambda: TensorBoardLogger("logs"),
    "CSV": lambda: CSVLogger("logs", name="tiny", version="a"),
    "hosted": lambda: Hosted("x7k2"),
    "hosted, numbered": lambda: Hosted(3),
    "several": lambda: [Hosted("x7k2"), CSVLogger("logs")],
}


@pytest.mark.parametrize("name", LOGGERS)
def test_the_folder_contains_the_checkpoints_of_lightning(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    saver = ModelCheckpoint()
    trainer = make_trainer(tmp_path, saver, logger=LOGGERS[name](), enable_checkpointing=True)
    saver.setup(trainer, None, "fit")
    folder = trainer_folder(trainer)
    assert (folder / "checkpoints").resolve() == (tmp_path / saver.dirpath).resolve()
    assert name == "none" or folder.resolve() != tmp_path
