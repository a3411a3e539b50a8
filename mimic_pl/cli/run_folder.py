"""The folder of a run: one for its configuration, checkpoints, results and logs, whatever the logger.

It is ``lightning_logs/version_N`` below the Trainer's ``default_root_dir``. A TensorBoard or CSV logger that the
configuration names has its own place for the folders of runs (``save_dir/name``), which is used instead; other loggers
(Weights & Biases, MLflow) keep their own files elsewhere.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from mimic_pl.construction import class_of
from mimic_pl.errors import ConfigError
from mimic_pl.home import expanded
from mimic_pl.runs import RUNS


class RunTrainer(Trainer):
    """A Trainer that writes into one folder, ``default_root_dir``, whatever its loggers."""

    @property
    def log_dir(self) -> str:
        """The folder; collective: must be called by every process."""
        folder: str = self.strategy.broadcast(self.default_root_dir)
        return folder


def folder_of_runs(trainer: Namespace) -> Path:
    """The folder in which the runs of a configuration are.

    Args:
        trainer: The ``trainer`` section.

    Raises:
        ConfigError: It is not on this machine.
    """
    own = next(_file_loggers(trainer.logger), None)
    root = str((trainer.default_root_dir if own is None else own.init_args.save_dir) or Path.cwd())
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            f"The folder of runs is {root}; it must be on this machine, since results are read back from it. To store "
            "checkpoints elsewhere, set --checkpoint.dirpath."
        )
    name = RUNS if own is None else own.init_args.name or ""
    return expanded(root.removeprefix("file://")).absolute() / name


def new_folder(trainer: Namespace, parent: Path) -> Path:
    """Create the folder of a new run: ``version_N`` unless the configuration, or a SLURM job, gives it a name.

    If a run already has that name, a number is appended, so that no run overwrites another.

    Only the first process creates it; the others learn its name from ``RunTrainer.log_dir``.

    Args:
        trainer: The ``trainer`` section.
        parent: The folder in which the run's folder is.
    """
    own = next(_file_loggers(trainer.logger), None)
    version = None if own is None else own.init_args.version
    name = job_name() if version is None else version if isinstance(version, str) else f"version_{version}"
    if name is not None and not (parent / name / "config.yaml").exists():
        return parent / name
    prefix = "version_" if name is None else f"{name}-"
    numbers = [_number(path.name, prefix) for path in parent.glob(f"{prefix}*")] if parent.is_dir() else []
    number = max(numbers, default=-1) + 1
    while _is_first_process():
        try:
            (parent / f"{prefix}{number}").mkdir(parents=True)
            break
        except FileExistsError:  # created by another process in the meantime
            if not parent.is_dir():
                raise
            number += 1
    return parent / f"{prefix}{number}"


def job_name() -> str | None:
    """Name of the runs of this SLURM job; None outside SLURM. A requeued job has the same one."""
    job = SLURMEnvironment.job_id() if SLURMEnvironment.detect() else None
    return None if job is None else f"version_{job}"


def loggers_in(folder: Path, given: Any, built: Any) -> list[Logger]:
    """The loggers of a configuration; those that write files write into a run's folder.

    Args:
        folder: The run's folder.
        given: The ``logger`` of the ``trainer`` section.
        built: The same, instantiated.
    """
    if built in (None, True):
        return [TensorBoardLogger(**_place(folder))]
    if built is False:
        return []
    descriptions = given if isinstance(given, list) else [given]
    loggers = built if isinstance(built, list) else [built]
    return [
        _placed(description, folder) if _has_folder(description) else logger
        for description, logger in zip(descriptions, loggers, strict=True)
    ]


def _placed(description: Namespace, folder: Path) -> Logger:
    arguments = {**vars(description.init_args), **(description.get("dict_kwargs") or {}), **_place(folder)}
    logger: Logger = class_of({"class_path": description.class_path}, trust_remote_code=True)(**arguments)
    if isinstance(logger, CSVLogger) and _is_first_process():
        logger._experiment = _AppendingWriter(logger.log_dir)
    return logger


def _place(folder: Path) -> dict[str, Any]:
    return {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}


class _AppendingWriter(ExperimentWriter):
    """Continues the ``metrics.csv`` of a run, which Lightning's deletes."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


def _file_loggers(given: Any) -> Iterator[Namespace]:
    """Descriptions of the loggers that write files into a folder for each run."""
    return filter(_has_folder, given if isinstance(given, list) else [given])


def _has_folder(logger: Any) -> bool:
    """Whether a logger writes files into a folder for each run, and its arguments name that folder."""
    if not isinstance(logger, Namespace):
        return False
    of_class = class_of({"class_path": logger.class_path}, trust_remote_code=True)
    arguments = logger.get("init_args", {})
    named = all(name in arguments for name in ("save_dir", "name", "version"))
    return named and issubclass(of_class, TensorBoardLogger | CSVLogger)


def _is_first_process() -> bool:
    """Whether this is the first process, by its launcher's variables: the Trainer, which knows, is not built yet."""
    return not _get_rank()


def _number(name: str, prefix: str) -> int:
    found = re.fullmatch(rf"{re.escape(prefix)}(\d+)", name)
    return int(found.group(1)) if found else -1
