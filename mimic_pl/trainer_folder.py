"""The folder into which the callbacks of a Trainer write."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer


def trainer_folder(trainer: Trainer) -> Path:
    """The folder of a Trainer's run; collective: must be called by every process.

    It is ``trainer.log_dir``. Of loggers without a folder for each run, such as those of Weights & Biases and MLflow,
    that is the folder of all runs, by default the working directory. Then it is ``save_dir/name/version``, which
    contains the ``checkpoints`` of ModelCheckpoint, too.
    """
    folder = trainer.log_dir or trainer.default_root_dir
    logger = trainer.logger
    if logger is not None and folder == logger.save_dir:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = os.path.join(folder, str(logger.name), version)
    return Path(trainer.strategy.broadcast(folder))
