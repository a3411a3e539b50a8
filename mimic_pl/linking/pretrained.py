"""The model of a linker, from wherever it is."""

from __future__ import annotations

from pathlib import Path

import torch

from mimic_pl.calibration import Calibration
from mimic_pl.errors import ConfigError
from mimic_pl.home import expanded
from mimic_pl.model import MIMIC
from mimic_pl.model_folder import load_folder, local_folder
from mimic_pl.runs import load_run, run_of_checkpoint


def load_linking_model(name_or_path: str | Path, revision: str | None = None) -> tuple[MIMIC, Calibration | None]:
    """Load a model and its calibration, if it has one.

    Args:
        name_or_path: Folder of a training run, a checkpoint, an exported folder, or a name on the hub.
        revision: Branch, tag or commit of a name on the hub.

    Raises:
        ConfigError: There is no such model.
        CheckpointError: Its weights cannot be read.
    """
    path = expanded(name_or_path)
    if path.is_file():
        # A calibration is of the run's best checkpoint, which this one need not be.
        run = run_of_checkpoint(path)
        of_best = run is not None and run.best_checkpoint.resolve() == path.resolve()
        return MIMIC.load_from_checkpoint(path), Calibration.find(run.folder) if run and of_best else None
    if (path / "config.yaml").is_file():
        return load_run(path)[0], Calibration.find(path)
    if path.suffix == ".ckpt":
        raise ConfigError(f"There is no checkpoint {path}.")
    folder = local_folder(name_or_path, revision)
    return load_folder(folder, source=str(name_or_path)), Calibration.find(folder)


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
