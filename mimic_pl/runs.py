"""Training runs on disk: folders with ``config.yaml`` and ``checkpoints/``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.checkpoint_reader import read_checkpoint, require_no_nan
from mimic_pl.construction import class_paths, require_trusted
from mimic_pl.data.base import BaseDataModule
from mimic_pl.errors import CheckpointError, ConfigError, UsageError
from mimic_pl.model import MIMIC
from mimic_pl.yaml_file import load_bounded

RUNS = "lightning_logs"
"""Subfolder of the working directory into which the Trainer writes its runs."""


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: The run's folder, absolute.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """Path of the configuration that the run was started with."""
        return self.folder / "config.yaml"

    def read_config(self) -> dict[str, Any]:
        """The content of :attr:`config`.

        Raises:
            ConfigError: The file cannot be read.
        """
        return read_yaml(self.config)

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints of the run, oldest first."""
        return sorted((self.folder / "checkpoints").glob("*.ckpt"), key=lambda path: (path.stat().st_mtime, path.name))

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from: ``last.ckpt``, or one after more steps.

        A killed run may have written a later checkpoint, or no ``last.ckpt`` yet.

        Raises:
            ConfigError: The run has no checkpoint.
        """
        named = [path for path in self.checkpoints if _is_last(path)]
        others = {path: _steps(path) for path in self.checkpoints if not _is_last(path)}
        if named:
            # A corrupted last.ckpt is kept, so that reading it reports the error.
            others = {path: steps for path, steps in others.items() if steps > _steps(named[-1], damaged=math.inf)}
        if not (named or others):
            raise ConfigError(f"The run {self.folder} has no checkpoint to resume from.")
        return max(others, key=lambda path: others[path]) if others else named[-1]

    @property
    def best_checkpoint(self) -> Path:
        """The best checkpoint by the monitored metric.

        The newest checkpoint stores its name; if that file was deleted or cannot be read, the file names
        (``...mrr=0.123.ckpt``) decide. A single checkpoint is the best one.

        Raises:
            ConfigError: The best checkpoint cannot be determined.
        """
        for path in reversed(self.checkpoints):
            stored = _stored_best(path)
            # By name only: the run's folder may have been moved.
            if stored and (self.folder / "checkpoints" / stored).is_file():
                return self.folder / "checkpoints" / stored
        candidates = [path for path in self.checkpoints if not _is_last(path)]
        by_metric = [(metric, path) for path in candidates if (metric := _metric_in_name(path)) is not None]
        if by_metric:
            return max(by_metric, key=lambda pair: (pair[0], pair[1].stat().st_mtime))[1]
        if len(candidates) == 1:
            return candidates[0]
        raise ConfigError(
            f"The best checkpoint in {self.folder / 'checkpoints'} cannot be determined. Name one: --ckpt_path PATH, "
            "or --ckpt_path last."
        )

    def checkpoint(self, which: str) -> Path:
        """The checkpoint named ``best`` or ``last``."""
        return self.best_checkpoint if which == "best" else self.last_checkpoint


def open_run(folder: str | Path) -> Run:
    """Open a folder as a run.

    Raises:
        ConfigError: It is not a run.
    """
    run = Run(Path(folder).expanduser().resolve())
    if not _is_run(run.folder):
        raise ConfigError(
            f"{run.folder} is not a training run: it needs a config.yaml and a checkpoint in checkpoints/. Runs are "
            f"folders such as {RUNS}/version_0, written by 'mimic-pl fit'."
        )
    return run


def run_of_checkpoint(path: str | Path | None) -> Run | None:
    """The run whose ``checkpoints/`` contains this file, if any."""
    if path is None:
        return None
    folder = Path(path).expanduser().resolve().parent.parent
    return Run(folder) if _is_run(folder) and Path(path).parent.name == "checkpoints" else None


def newest_run(root: str | Path = RUNS) -> Run:
    """Find the run with the newest checkpoint in a folder, searched recursively.

    Raises:
        ConfigError: There is no run.
    """
    root = Path(root).expanduser().resolve()
    runs = find_runs(root)
    if not runs:
        raise ConfigError(
            f"There is no training run in {root}. Train one first (mimic-pl fit --config ...), run this command in "
            "the folder where you trained, or pass a run with --run FOLDER."
        )
    return max(runs, key=lambda run: (run.checkpoints[-1].stat().st_mtime, run.folder.name))


def find_runs(root: str | Path) -> list[Run]:
    """All runs in a folder, searched recursively, in no particular order; only those with a checkpoint."""
    root = Path(root).expanduser().resolve()
    return [Run(config.parent) for config in root.rglob("config.yaml") if _is_run(config.parent)]


def load_run(folder: str | Path, which: str = "best", trust_remote_code: bool = False) -> tuple[MIMIC, BaseDataModule]:
    """Load a run's model, with its weights, and its data module, for notebooks and scripts.

    Args:
        folder: The run's folder.
        which: ``best`` or ``last``: the checkpoint to load the weights from.
        trust_remote_code: Also build classes of packages other than mimic_pl: importing them runs their code.

    Returns:
        The model in evaluation mode and its data module, connected: ``model.encode_entities(data.entities[:100])``
        works at once. (With several data sets: ``data.ranked.entities``.)

    Raises:
        ConfigError: The folder is not a run, its configuration does not fit this version, or it names a class of
            another package.
        CheckpointError: The weights do not fit the model, cannot be read, or contain NaN.

    Example:
        >>> model, data = load_run("lightning_logs/version_0")  # doctest: +SKIP
        >>> Trainer().test(model, data)  # doctest: +SKIP
    """
    run = open_run(folder)
    config = run.read_config()
    require_trusted(class_paths({key: config.get(key) for key in ("model", "data")}), trust_remote_code)
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(MIMIC, "model", subclass_mode=True)
    parser.add_lightning_class_args(BaseDataModule, "data", subclass_mode=True)
    try:
        built = parser.instantiate_classes(parser.parse_object({key: config[key] for key in ("model", "data")}))
    except (ArgumentError, KeyError, TypeError) as error:
        raise ConfigError(f"The configuration {run.config} does not describe a model and its data: {error}") from error
    checkpoint = run.checkpoint(which)
    weights = read_checkpoint(checkpoint)["state_dict"]
    require_no_nan(weights, checkpoint)
    try:
        built.model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {checkpoint} do not fit the model of {run.config}: {error}") from error
    processor = built.data.processor = built.model.processor
    processor.mention_images, processor.entity_images = (
        built.data.ranked.mention_images,
        built.data.ranked.entity_images,
    )
    return built.model.eval(), built.data


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ConfigError: It cannot be read; a :class:`UsageError` if it is not valid YAML, or not a mapping.
    """
    try:
        content = load_bounded(path)
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError
        raise UsageError(f"The configuration {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"The configuration {path} is empty, or not a mapping of keys to values.")
    return content


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and any((folder / "checkpoints").glob("*.ckpt"))


def _is_last(path: Path) -> bool:
    return re.fullmatch(r"last(-v\d+)?\.ckpt", path.name) is not None


def _steps(path: Path, damaged: float = -1) -> float:
    """Optimizer steps of a checkpoint."""
    try:
        return float(read_checkpoint(path, check=False).get("global_step", 0))
    except CheckpointError:
        return damaged


def _metric_in_name(path: Path) -> float | None:
    found = re.search(r"mrr=(\d+\.\d+)", path.name)
    return float(found.group(1)) if found else None


def _stored_best(path: Path) -> str | None:
    """File name of the best checkpoint as stored by ModelCheckpoint in this one; None if it cannot be read."""
    try:
        callbacks = read_checkpoint(path, check=False).get("callbacks", {})
    except CheckpointError:
        return None  # fall back to older checkpoints and the file names
    for name, state in callbacks.items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state.get("best_model_path"):
            return Path(state["best_model_path"]).name
    return None
