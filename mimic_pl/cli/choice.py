"""Chooses the run and the checkpoint that a command works on."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from mimic_pl.checkpoints.path import checkpoint_path
from mimic_pl.checkpoints.reader import read_checkpoint, require_no_nan
from mimic_pl.cli.run_folder import folder_of_runs, job_name
from mimic_pl.errors import ConfigError
from mimic_pl.remote_path import Folder, RemotePath
from mimic_pl.run_settings import training_differences
from mimic_pl.runs import NAMED_CHECKPOINTS, RUNS, Run, find_runs, newest_run, open_run, run_of_checkpoint
from mimic_pl.yaml_file import read_yaml

_ON_RUNS = ("fit", "validate", "test", "predict", "robustness", "calibrate")
"""Commands that may use the configuration of a run."""


class Choice(NamedTuple):
    """The run whose configuration a command uses.

    Attributes:
        args: The command line, with the run's configuration filled in.
        run: The run; ``None`` if the command line has its own configuration.
    """

    args: list[str]
    run: Run | None = None


class Start(NamedTuple):
    """What a command starts from, and where it writes.

    Attributes:
        checkpoint: The checkpoint to load.
        run: The run in whose folder training continues, or whose results are written; ``None`` for a new folder.
        parent: The folder in which a new folder is created.
        note: Message for the user.
    """

    checkpoint: Path | None
    run: Run | None
    parent: Path
    note: str | None = None


def choose_run(args: list[str]) -> Choice:
    """Choose the run whose configuration is used, before the command line is parsed.

    It is that of ``--run``. Without ``--run``, ``--config`` and ``--model``, it is the run of the checkpoint in
    ``--ckpt_path``, or the newest one. Options and ``--config`` files override its configuration.

    Raises:
        ConfigError: There is no such run, or a configuration cannot be read.
        CheckpointError: The checkpoint does not exist.
    """
    if args == ["fit"]:
        raise ConfigError("fit needs a model and data. For example: mimic-pl fit --config cli_configs/demo.yaml")
    if not args or args[0] not in _ON_RUNS or _requests_help(args):
        return Choice(args)
    command, rest = args[0], args[1:]
    given = _peek(rest)
    if given.ckpt_path is not None:
        rest = [*rest, "--ckpt_path", given.ckpt_path]  # also overrides that of a --config that follows it
    for config in map(Path, given.config or ()):
        if config.is_file():
            read_yaml(config)  # names the file if it cannot be read, unlike jsonargparse
    bare = not given.config and given.model is None and (command != "fit" or given.ckpt_path is not None)
    if given.run:
        run = open_run(given.run)
    elif bare:
        named = None if given.ckpt_path in (None, *NAMED_CHECKPOINTS) else checkpoint_path(given.ckpt_path)
        run = run_of_checkpoint(named) or newest_run(Path(given.root or ".") / RUNS)
    else:
        return Choice([command, *rest])
    # The run's own checkpoint path is that from which it was resumed.
    return Choice([command, "--config", str(run.config), "--ckpt_path", "null", *rest], run)


def choose_checkpoint(command: str, config: Namespace, configured: Run | None) -> Start:
    """Choose the checkpoint of a command, wherever it was given, and verify it.

    - ``best`` and ``last`` refer to the run whose configuration is used. If the command line has its own configuration,
      they refer to the newest run in its folder of runs; for ``fit``, to the newest with the same model, data and seed.
    - ``fit`` with ``last`` continues that run in its folder. If there is none, training starts from scratch, since a
      requeued job always has the same command line. A requeued SLURM job needs no ``last``.
    - Evaluation with a run's configuration and one of its checkpoints, by default the best one, writes its results into
      the run's folder.
    - Everything else writes into a new folder.

    Args:
        command: The command.
        config: Its parsed configuration.
        configured: The run whose configuration it is, from :func:`choose_run`.

    Raises:
        ConfigError: There is no such run or checkpoint.
        CheckpointError: The checkpoint cannot be used.
    """
    parent = configured.folder.parent if configured is not None else folder_of_runs(config.trainer)
    given = None if config.ckpt_path is None else str(config.ckpt_path)
    if command == "fit":
        return _start_of_training(config, given, configured, parent)
    if given is None and configured is None:
        return Start(None, None, parent, "No --ckpt_path: the model is evaluated with its initial weights.")
    if given is None or given in NAMED_CHECKPOINTS:
        run = configured or newest_run(parent)
        checkpoint = _checked(run.checkpoint(given or "best"))
        note = f"Using run {short_path(run.folder)}, checkpoint {checkpoint.name}."
        if given in (None, "best") and checkpoint.name.startswith("last"):
            note = f"{note[:-1]}: no best one was saved, since it was trained without validation."
        return Start(checkpoint, configured, parent, note)
    checkpoint = _checked(checkpoint_path(given))
    if configured is None:
        return Start(checkpoint, None, parent)
    name = short_path(configured.folder)
    if checkpoint.resolve() in map(Path.resolve, configured.checkpoints):
        return Start(checkpoint, configured, parent, f"Using run {name}, checkpoint {checkpoint.name}.")
    note = f"Using the configuration of run {name} with another checkpoint, {short_path(checkpoint)}, in a new folder."
    return Start(checkpoint, None, parent, note)


def _start_of_training(config: Namespace, given: str | None, configured: Run | None, parent: Path) -> Start:
    if given is not None and given not in NAMED_CHECKPOINTS:
        checkpoint = _checked(checkpoint_path(given))
        return Start(checkpoint, None, parent, f"Training continues from {short_path(checkpoint)} in a new run.")
    job = job_name()
    if given is None and job is None:
        return Start(None, None, parent)
    settings = _as_dict(config)
    if configured is not None:
        if changed := training_differences(configured.read_config(), settings):
            raise ConfigError(
                f"The run {short_path(configured.folder)} cannot be resumed with other settings: {_listed(changed)}. "
                "To continue from its weights in a new run, pass the path of a checkpoint: --ckpt_path "
                f"{short_path(configured.last_checkpoint)}."
            )
        return _resumed(configured, given or "last", parent)
    runs = find_runs(parent)
    if given is None:  # a SLURM job resumes its own runs
        runs = [run for run in runs if run.folder.name == job or run.folder.name.startswith(f"{job}-")]
    other = ""
    for run in runs:
        try:
            changed = training_differences(run.read_config(), settings)
        except ConfigError:
            changed = ["its configuration cannot be read"]
        if not changed:
            return _resumed(run, given or "last", parent)
        other = other or f" The newest one, {short_path(run.folder)}, differs: {_listed(changed)}."
    if given is None:
        return Start(None, None, parent)
    missing = f"There is no training run in {short_path(parent)} with this configuration"
    if given == "best":
        raise ConfigError(f"{missing}.{other} Name a checkpoint: --ckpt_path PATH.")
    return Start(None, None, parent, f"{missing} to resume: training starts from scratch.{other}")


def _resumed(run: Run, which: str, parent: Path) -> Start:
    checkpoint = _checked(run.checkpoint(which))
    note = f"Resuming run {short_path(run.folder)}, checkpoint {checkpoint.name}."
    return Start(checkpoint, run, parent, note)


def _checked(checkpoint: Path) -> Path:
    """Verify a checkpoint before anything else reads it."""
    require_no_nan(read_checkpoint(checkpoint)["state_dict"], checkpoint)
    return checkpoint


def _as_dict(config: Namespace) -> dict[str, Any]:
    """A parsed configuration as a YAML file would hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(config.as_dict(), default=str))
    return plain


def _listed(changed: list[str]) -> str:
    more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more


def _peek(args: list[str]) -> Any:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append")
    parser.add_argument("--model", "--model.class_path", dest="model")
    parser.add_argument("--run")
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.default_root_dir", dest="root")
    return parser.parse_known_args(args)[0]


def _requests_help(args: list[str]) -> bool:
    return any(re.match(r"-h$|--help|--print_config|--[\w.]+\.help(=|$)", arg) for arg in args)


def short_path(path: Folder) -> str:
    """A path relative to the working directory, if possible."""
    if isinstance(path, RemotePath):
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
