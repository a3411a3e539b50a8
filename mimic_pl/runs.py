"""What a run leaves behind, and how to find it again: a folder with ``config.yaml`` and ``checkpoints/``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.checkpoint_reader import read_checkpoint, require_numbers
from mimic_pl.construction import class_paths, require_trusted
from mimic_pl.data.base import BaseDataModule
from mimic_pl.errors import CheckpointError, ConfigError, UsageError
from mimic_pl.files import only_writer
from mimic_pl.model import MIMIC

RUNS = "lightning_logs"
"""Folder below the working directory in which the Trainer puts its runs."""


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: The run's folder, absolute.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration that the run was started with."""
        return self.folder / "config.yaml"

    def read_config(self) -> dict[str, Any]:
        """The content of :attr:`config`.

        Raises:
            ConfigError: The file cannot be read.
        """
        return read_yaml(self.config)

    @property
    def checkpoints(self) -> list[Path]:
        """All of its checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("*.ckpt"), key=lambda path: (path.stat().st_mtime, path.name))

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from: ``last.ckpt``, or one that is further.

        A run that was killed may have written another one since, or no ``last.ckpt`` yet.

        Raises:
            ConfigError: The run has none.
        """
        named = [path for path in self.checkpoints if _is_last(path)]
        others = {path: _steps(path) for path in self.checkpoints if not _is_last(path)}
        if named:
            # If it is damaged, that is for the reader to know.
            others = {path: steps for path, steps in others.items() if steps > _steps(named[-1], damaged=math.inf)}
        if not (named or others):
            raise ConfigError(f"The run {self.folder} has no checkpoint to resume from.")
        return max(others, key=lambda path: others[path]) if others else named[-1]

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint that was best on the monitored metric.

        The newest checkpoint remembers it; file names (``...mrr=0.123.ckpt``) tell it where that file was deleted or
        cannot be read, and a single checkpoint is the best one.

        Raises:
            ConfigError: Nothing tells which one was best.
        """
        for path in reversed(self.checkpoints):
            remembered = _remembered_best(path)
            # By name only: a run's folder may have moved since.
            if remembered and (self.folder / "checkpoints" / remembered).is_file():
                return self.folder / "checkpoints" / remembered
        candidates = [path for path in self.checkpoints if not _is_last(path)]
        by_metric = [(metric, path) for path in candidates if (metric := _metric_in_name(path)) is not None]
        if by_metric:
            return max(by_metric, key=lambda pair: (pair[0], pair[1].stat().st_mtime))[1]
        if len(candidates) == 1:
            return candidates[0]
        raise ConfigError(
            f"Nothing in {self.folder / 'checkpoints'} tells which checkpoint was best. Name one: --ckpt_path PATH, or "
            "--ckpt_path last."
        )

    def checkpoint(self, which: str) -> Path:
        """The checkpoint named ``best`` or ``last``."""
        return self.best_checkpoint if which == "best" else self.last_checkpoint


def open_run(folder: str | Path) -> Run:
    """Take a folder as a run.

    Raises:
        ConfigError: It is none.
    """
    run = Run(Path(folder).expanduser().resolve())
    if not _is_run(run.folder):
        raise ConfigError(
            f"{run.folder} is no training run: it needs a config.yaml and a checkpoint in checkpoints/. Runs are "
            f"folders such as {RUNS}/version_0 that 'mimic-pl fit' leaves behind."
        )
    return run


def run_of_checkpoint(path: str | Path | None) -> Run | None:
    """The run in whose ``checkpoints/`` a file lies, if it lies in one."""
    if path is None:
        return None
    folder = Path(path).expanduser().resolve().parent.parent
    return Run(folder) if _is_run(folder) and Path(path).parent.name == "checkpoints" else None


def newest_run(root: str | Path = RUNS) -> Run:
    """Find the run with the newest checkpoint below a folder.

    Raises:
        ConfigError: There is none.
    """
    root = Path(root).expanduser().resolve()
    runs = runs_below(root)
    if not runs:
        raise ConfigError(
            f"There is no training run in {root}. Train one first (mimic-pl fit --config ...), start this command in "
            "the folder where you trained, or name a run with --run FOLDER."
        )
    return max(runs, key=lambda run: (run.checkpoints[-1].stat().st_mtime, run.folder.name))


def runs_below(root: str | Path) -> list[Run]:
    """All runs below a folder, in no order; one without a checkpoint is none yet."""
    root = Path(root).expanduser().resolve()
    return [Run(config.parent) for config in root.rglob("config.yaml") if _is_run(config.parent)]


def load_run(folder: str | Path, which: str = "best", trust_remote_code: bool = False) -> tuple[MIMIC, BaseDataModule]:
    """Build a run's model, with its weights, and its data module, for notebooks and scripts.

    Args:
        folder: The run's folder.
        which: ``best`` or ``last``: the checkpoint to take the weights from.
        trust_remote_code: Build classes of other packages than mimic_pl, too: importing them runs their code.

    Returns:
        The model in evaluation mode, and its data, which are connected: ``model.encode_entities(data.entities[:100])``
        works at once. (Of a data module that is made of several it is ``data.ranked.entities``.)

    Raises:
        ConfigError: The folder is no run, its configuration does not fit this version, or it names a class of another
            package.
        CheckpointError: The weights do not fit the model, cannot be read, or are NaN.

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
    require_numbers(weights, checkpoint)
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


def become_only_writer(folder: Path, command: str) -> FileLock:
    """Keep other processes from writing the same outputs into a run's folder, until the lock is released.

    Args:
        folder: The folder; it is made if it is not there.
        command: Whose outputs: a run may be tested while it trains.

    Raises:
        StoreError: Another process writes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return only_writer(folder, f".{command}.lock")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ConfigError: It cannot be read; a :class:`UsageError` if it is no YAML, or holds no keys.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a byte that is no UTF-8 is a ValueError
        raise UsageError(f"The configuration {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"The configuration {path} is empty, or no list of keys and values.")
    return content


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and any((folder / "checkpoints").glob("*.ckpt"))


def _is_last(path: Path) -> bool:
    return re.fullmatch(r"last(-v\d+)?\.ckpt", path.name) is not None


def _steps(path: Path, damaged: float = -1) -> float:
    """Optimizer steps before a checkpoint."""
    try:
        return float(read_checkpoint(path, check=False).get("global_step", 0))
    except CheckpointError:
        return damaged


def _metric_in_name(path: Path) -> float | None:
    found = re.search(r"mrr=(\d+\.\d+)", path.name)
    return float(found.group(1)) if found else None


def _remembered_best(path: Path) -> str | None:
    """File name of the best checkpoint as ModelCheckpoint kept it in this one; None if it cannot be read."""
    try:
        callbacks = read_checkpoint(path, check=False).get("callbacks", {})
    except CheckpointError:
        return None  # a damaged file: older ones and the file names still tell
    for name, state in callbacks.items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state.get("best_model_path"):
            return Path(state["best_model_path"]).name
    return None
