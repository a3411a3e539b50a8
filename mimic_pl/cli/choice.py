"""Chooses the run that a command works on, before the command line is parsed: the run's config becomes part of it."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mimic_pl.checkpoint_reader import read_checkpoint, require_no_nan
from mimic_pl.errors import ConfigError
from mimic_pl.runs import RUNS, Run, find_runs, newest_run, open_run, read_yaml, run_of_checkpoint


class Choice(NamedTuple):
    """The chosen run.

    Attributes:
        args: The command line with the run's configuration and checkpoint filled in.
        run: The run whose folder the outputs are written to; ``None`` for a new folder.
        note: Message for the user.
    """

    args: list[str]
    run: Run | None = None
    note: str | None = None


def choose_run(args: list[str]) -> Choice:
    """Choose the run.

    - ``test``, ``validate``, ``predict`` and ``robustness`` without ``--config`` and ``--model`` use the newest run, or
      that of ``--run``, or that of the checkpoint in ``--ckpt_path``: its configuration, overridden by ``--config``
      files and options, and its best checkpoint.
    - ``--ckpt_path best`` and ``last`` refer to that run; with a ``--config``, only its weights are used.
    - ``fit --ckpt_path last`` resumes: training continues in the folder of the newest run. With a ``--config`` and no
      run that has a checkpoint, training starts, since a requeued job always has the same command line.

    Raises:
        ConfigError: There is no such run or checkpoint, or a configuration cannot be read.
        CheckpointError: The checkpoint cannot be used.
    """
    if args == ["fit"]:
        raise ConfigError("fit needs a model and data. For example: mimic-pl fit --config cli_configs/demo.yaml")
    if not args or args[0] not in ("fit", "validate", "test", "predict", "robustness") or _requests_help(args):
        return Choice(args)
    command, rest = args[0], args[1:]
    given = _peek(rest)
    for config in map(Path, given.config or ()):
        if config.is_file():
            read_yaml(config)  # names the file if it cannot be read, unlike jsonargparse
    named = given.ckpt_path in ("best", "last")
    if not named and given.ckpt_path and "://" not in given.ckpt_path:
        if not Path(given.ckpt_path).is_file():
            raise ConfigError(f"The checkpoint {given.ckpt_path!r} does not exist. Pass a file, or 'best' or 'last'.")
        _check(Path(given.ckpt_path))
    bare = not given.config and given.model is None
    if not (given.run or named or (bare and command != "fit")):
        untrained = command != "fit" and given.ckpt_path is None
        note = "No --ckpt_path: the model is evaluated with its initial weights." if untrained else None
        return Choice(args, note=note)

    runs = Path(_root(given)) / RUNS
    if command == "fit" and given.ckpt_path == "last" and not (given.run or bare) and not find_runs(runs):
        # The command line of a requeued job must also work for its first start.
        note = f"There is no checkpoint in {short_path(runs.resolve())} to resume from: training starts from scratch."
        return Choice([*args, "--ckpt_path", "null"], note=note)
    if given.run:
        run = open_run(given.run)
    else:
        run = (None if named else run_of_checkpoint(given.ckpt_path)) or newest_run(runs)
    takes_config = bool(given.run) or bare
    front = ["--config", str(run.config)] if takes_config else []
    if named or given.ckpt_path is None:
        checkpoint = run.checkpoint(given.ckpt_path or "best")
        _check(checkpoint)
        # At the end, to override a path in the configuration, and the words best and last.
        rest = [*rest, "--ckpt_path", str(checkpoint)]
        note = (
            f"{'Resuming' if command == 'fit' else 'Using'} run {short_path(run.folder)}, checkpoint {checkpoint.name}."
        )
    else:
        note = f"Using run {short_path(run.folder)}, checkpoint {given.ckpt_path}."
    return Choice([command, *front, *rest], run if takes_config or command == "fit" else None, note)


def check_data_root(config: Any) -> None:
    """Check the folders of all data sets, before a model is loaded.

    Raises:
        ConfigError: A folder does not exist.
    """
    for data in _data_sets(config.data.as_dict()):
        module, _, name = data["class_path"].rpartition(".")
        data_class = getattr(import_module(module), name)
        data_class.check_root(data["init_args"]["root"])


def _data_sets(data: Any) -> Iterator[dict[str, Any]]:
    """The data sections with a folder: the given one, or nested ones."""
    if isinstance(data, list):
        for part in data:
            yield from _data_sets(part)
    elif isinstance(data, dict) and "class_path" in data:
        arguments = data.get("init_args") or {}
        if "root" in arguments:
            yield data
        else:
            yield from _data_sets(list(arguments.values()))


def require_same_task(run: Run, config: Any) -> None:
    """Refuse to resume a run with other data or another model than it was trained with.

    Args:
        run: The run to resume.
        config: The parsed configuration of this command.

    Raises:
        ConfigError: They differ.
    """
    trained = run.read_config()
    for key in ("data.class_path", "data.init_args.root", "model.class_path"):
        before: Any = trained
        for part in key.split("."):
            before = before.get(part) if isinstance(before, dict) else None
        now = config.get(key)
        if key == "data.init_args.root" and before is None and now is None:  # several sets
            sections = trained.get("data"), config.data.as_dict()
            before, now = (", ".join(str(part["init_args"]["root"]) for part in _data_sets(data)) for data in sections)
        if before is not None and now is not None and str(before) != str(now):
            raise ConfigError(
                f"The newest run {short_path(run.folder)} was trained with {key} = {before}, but this command has "
                f"{now}. To resume another run, pass the path of its checkpoint: --ckpt_path "
                "FOLDER/checkpoints/last.ckpt."
            )


def _check(checkpoint: Path) -> None:
    """Verify a checkpoint before anything else reads it."""
    require_no_nan(read_checkpoint(checkpoint)["state_dict"], checkpoint)


def _peek(args: list[str]) -> Any:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append")
    parser.add_argument("--model", "--model.class_path", dest="model")
    parser.add_argument("--run")
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.default_root_dir", dest="root")
    return parser.parse_known_args(args)[0]


def _root(given: Any) -> str:
    """The Trainer's default_root_dir, from the command line or a configuration."""
    root = given.root
    for path in reversed(given.config or []) if root is None else ():
        trainer = read_yaml(Path(path)).get("trainer") if Path(path).is_file() else None
        root = root or (trainer.get("default_root_dir") if isinstance(trainer, dict) else None)
    return root or "."


def _requests_help(args: list[str]) -> bool:
    return any(re.match(r"-h$|--help|--print_config|--[\w.]+\.help(=|$)", arg) for arg in args)


def short_path(path: Path) -> str:
    """A path relative to the working directory, if possible."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
