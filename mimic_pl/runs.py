"""Training runs on disk: folders with ``config.yaml`` and ``checkpoints/``."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl import __version__
from mimic_pl.checkpoints.path import checkpoint_path
from mimic_pl.checkpoints.reader import read_checkpoint, require_no_nan
from mimic_pl.construction import class_paths, require_trusted
from mimic_pl.data.base import BaseDataModule
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.home import expand_home, expanded
from mimic_pl.model import MIMIC
from mimic_pl.yaml_file import read_yaml

RUNS = "lightning_logs"
"""Subfolder of the working directory into which the Trainer writes its runs."""

NAMED_CHECKPOINTS = ("best", "last", "hpc")
"""Checkpoints of a run by name; ``hpc`` is Lightning's name for the last one of a requeued SLURM job."""


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
    def started(self) -> float:
        """When the run was started or last resumed, in seconds since 1970; 0 for runs that do not state it."""
        found = self._head
        try:
            return 0.0 if found is None else datetime.fromisoformat(found["started"]).timestamp()
        except ValueError:
            return 0.0

    @property
    def version(self) -> str:
        """Version of mimic-pl that started the run."""
        found = self._head
        return "an earlier version" if found is None else found["version"]

    @property
    def _head(self) -> re.Match[str] | None:
        try:
            with self.config.open(encoding="utf-8", errors="replace") as file:
                return re.match(r"# mimic-pl (?P<version>\S+), started (?P<started>\S+)\s", file.readline(1000))
        except OSError:
            return None

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints of the run, in the order of their names.

        They are in ``checkpoints/``, or in the folder that the configuration names; those of a SLURM job that is
        requeued (``hpc_ckpt_1.ckpt``) are in the run's folder itself.
        """
        folder = self.folder / "checkpoints"
        if not folder.is_dir():
            section = self.read_config().get("checkpoint")
            if isinstance(section, dict) and isinstance(section.get("dirpath"), str):
                folder = expanded(section["dirpath"]).resolve()
        found = [*folder.glob("*.ckpt"), *self.folder.glob("hpc_ckpt_*.ckpt")]
        return sorted(filter(Path.is_file, found), key=lambda path: _natural(path.name))

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from: ``last.ckpt``, or one after more steps.

        A killed run may have written a later checkpoint, or no ``last.ckpt`` yet.

        Raises:
            ConfigError: The run has no checkpoint.
        """
        checkpoints = self.checkpoints
        named = [path for path in checkpoints if _is_last(path)]
        others = {path: _steps(path) for path in checkpoints if not _is_last(path)}
        if named:
            # A corrupted last.ckpt is kept, so that reading it reports the error.
            last = max(named, key=lambda path: _steps(path, damaged=math.inf))
            others = {path: steps for path, steps in others.items() if steps > _steps(last, damaged=math.inf)}
        if not (named or others):
            raise ConfigError(f"The run {self.folder} has no checkpoint to resume from.")
        return max(others, key=lambda path: others[path]) if others else last

    @property
    def best_checkpoint(self) -> Path:
        """The best checkpoint by the monitored metric; the last one of a run that was trained without validation.

        The checkpoint after most steps stores its name; if that file was deleted or cannot be read, the file names
        (``...mrr=0.123.ckpt``) decide, and of equal ones the earlier. A single checkpoint is the best one.

        Raises:
            ConfigError: The best checkpoint cannot be determined.
        """
        checkpoints = self.checkpoints
        by_name = {path.name: path for path in checkpoints}
        read = {path: _steps_and_best(path) for path in checkpoints}
        for _, stored in sorted(read.values(), key=lambda found: found[0], reverse=True):
            # By name only: the run's folder may have been moved.
            if stored in by_name:
                return by_name[stored]
        candidates = [path for path in checkpoints if not _is_last(path)]
        by_metric = [(metric, path) for path in candidates if (metric := _metric_in_name(path)) is not None]
        if by_metric:
            return max(by_metric, key=lambda pair: (pair[0], -read[pair[1]][0]))[1]
        if len(candidates) == 1:
            return candidates[0]
        if checkpoints and not candidates:
            return self.last_checkpoint
        raise ConfigError(
            f"The best checkpoint in {self.folder / 'checkpoints'} cannot be determined. Name one: --ckpt_path PATH, "
            "or --ckpt_path last."
        )

    def checkpoint(self, which: str) -> Path:
        """A checkpoint by its name in :data:`NAMED_CHECKPOINTS`, its file name, or its path."""
        if which in NAMED_CHECKPOINTS:
            return self.best_checkpoint if which == "best" else self.last_checkpoint
        own = [path for path in self.checkpoints if path.name == which]
        return own[0] if own else checkpoint_path(which)


def open_run(folder: str | Path) -> Run:
    """Open a folder as a run.

    Raises:
        ConfigError: It is not a run.
    """
    run = Run(expanded(folder).resolve())
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
    path = expanded(path).resolve()
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return Run(folder) if _is_run(folder) and path in map(Path.resolve, Run(folder).checkpoints) else None


def newest_run(root: str | Path = RUNS) -> Run:
    """Find the run that was started or resumed last in a folder, searched recursively.

    Raises:
        ConfigError: There is no run.
    """
    runs = find_runs(root)
    if not runs:
        raise ConfigError(
            f"There is no training run in {expanded(root).resolve()}. Train one first (mimic-pl fit --config "
            "...), run this command in the folder where you trained, or pass a run with --run FOLDER."
        )
    return runs[0]


def find_runs(root: str | Path) -> list[Run]:
    """All runs in a folder, searched recursively, newest first; only those with a checkpoint.

    Copying a run changes the times of its files, so its configuration states when it was started; among runs that do
    not state it, the one with the highest number in its name is the newest.
    """
    root = expanded(root).resolve()
    runs = [Run(config.parent) for config in root.rglob("config.yaml") if _is_run(config.parent)]
    return sorted(runs, key=lambda run: (run.started, _natural(str(run.folder))), reverse=True)


def head_of_config(folder: Path) -> str:
    """The first line of a run's configuration: the version of mimic-pl, and when the run was started.

    A run that is started after another in the same folder has a later time, even if the clock was set back.

    Args:
        folder: The run's folder.
    """
    newest = max((Run(config.parent).started for config in folder.parent.glob("*/config.yaml")), default=0.0)
    started = datetime.fromtimestamp(max(time.time(), newest + 1), timezone.utc)
    return f"# mimic-pl {__version__}, started {started.isoformat()}\n"


def load_run(folder: str | Path, which: str = "best", trust_remote_code: bool = False) -> tuple[MIMIC, BaseDataModule]:
    """Load a run's model, with its weights, and its data module, for notebooks and scripts.

    Args:
        folder: The run's folder.
        which: The checkpoint to load the weights from: ``best``, ``last``, its file name in the run, or a path.
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
    built = _built(run, {"model": MIMIC, "data": BaseDataModule}, trust_remote_code)
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


def load_data(folder: str | Path, trust_remote_code: bool = False) -> BaseDataModule:
    """Load a run's data module without its model, to read records and images.

    Args:
        folder: The run's folder; its checkpoints may have been deleted.
        trust_remote_code: Also build classes of packages other than mimic_pl: importing them runs their code.

    Raises:
        ConfigError: Its configuration does not fit this version, or it names a class of another package.
    """
    data: BaseDataModule = _built(Run(expanded(folder).resolve()), {"data": BaseDataModule}, trust_remote_code).data
    return data


def _built(run: Run, classes: Mapping[str, type], trust_remote_code: bool) -> Any:
    """Build sections of a run's configuration, each an instance of its class or of a subclass."""
    config = expand_home(run.read_config())
    require_trusted(class_paths({key: config.get(key) for key in classes}), trust_remote_code)
    parser = LightningArgumentParser(exit_on_error=False)
    for key, of_class in classes.items():
        parser.add_lightning_class_args(of_class, key, subclass_mode=True)
    try:
        return parser.instantiate(parser.parse_object({key: config[key] for key in classes}))
    except (ArgumentError, KeyError, TypeError) as error:
        what = " and its ".join(classes)
        raise ConfigError(f"The configuration {run.config} does not describe a {what}: {error}") from error


def _is_run(folder: Path) -> bool:
    try:
        run = Run(folder)
        return run.config.is_file() and bool(run.checkpoints)
    except (OSError, ConfigError):  # a folder that may not be read, a configuration that is not YAML
        return False


def _natural(name: str) -> list[tuple[str, int]]:
    """Sort key by which ``version_10`` follows ``version_9``."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


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


def _steps_and_best(path: Path) -> tuple[float, str | None]:
    """Optimizer steps of a checkpoint, and the file name of the best one as stored by ModelCheckpoint in it.

    They are -1 and None if it cannot be read: older checkpoints or the file names decide then.
    """
    try:
        checkpoint = read_checkpoint(path, check=False)
    except CheckpointError:
        return -1, None
    stored = [
        Path(state["best_model_path"]).name
        for name, state in checkpoint.get("callbacks", {}).items()
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state.get("best_model_path")
    ]
    return float(checkpoint.get("global_step", 0)), stored[0] if stored else None
