"""A training run that a command evaluates with a Trainer of its own, to write a file into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from mimic_pl.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer


class RunEvaluation(NamedTuple):
    """The run, and the command line.

    Attributes:
        config: The parsed command line, with the configuration of the run.
        folder: The run's folder.
        checkpoint: The checkpoint to evaluate.
        note: Message for the user: which run and checkpoint these are.
    """

    config: Namespace
    folder: Path
    checkpoint: Path
    note: str


def add_evaluation_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options that choose a run, and those of its Trainer, model and data."""
    from mimic_pl.cli.sections import add_data_argument, add_model_argument, add_run_arguments, add_trainer_argument

    add_run_arguments(parser)
    add_trainer_argument(parser, complete)
    add_model_argument(parser, complete)
    add_data_argument(parser, complete)


def choose_evaluation(command: str, parser: ArgumentParser, args: Sequence[str]) -> RunEvaluation:
    """Choose the run and the checkpoint by the command line.

    Raises:
        ConfigError: There is no run, or the checkpoint is not one of it.
        CheckpointError: The checkpoint cannot be used.
    """
    from mimic_pl.cli.choice import choose_checkpoint, choose_run
    from mimic_pl.cli.config_checks import check_config
    from mimic_pl.cli.sections import with_sections

    choice = choose_run([command, *args])
    config = parser.parse_args(list(with_sections(choice.args[1:], ("trainer", "model", "data"))))
    start = choose_checkpoint(command, config, choice.run)
    if choice.run is None:
        raise ConfigError(f"{command} evaluates a trained run: omit --config and --model, or add --run FOLDER.")
    if start.run is None or start.checkpoint is None:
        raise ConfigError(
            f"{start.checkpoint} is not a checkpoint of the run {choice.run.folder}, into whose folder the results are "
            "written. Pass one of its checkpoints, or another run with --run FOLDER."
        )
    check_config(config)
    return RunEvaluation(config, start.run.folder, start.checkpoint, start.note or "")


def build_evaluation(
    parser: ArgumentParser, chosen: RunEvaluation, callbacks: list[Callback] | None = None, **settings: Any
) -> tuple[Any, Any, Trainer]:
    """Build model, data and Trainer; the Trainer changes no file of the run.

    Args:
        parser: The parser.
        chosen: The run.
        callbacks: Callbacks in place of those of the training; these by default.
        **settings: Settings of the Trainer that override configured ones.
    """
    config = chosen.config
    own = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    for option, value in {**own, **settings, "default_root_dir": str(chosen.folder)}.items():
        config.trainer[option] = value
    if callbacks is not None:
        config.trainer.callbacks = None
    built = parser.instantiate(config)
    return built.model, built.data, build_trainer(built.trainer, callbacks)


def build_trainer(settings: Namespace, callbacks: list[Callback] | None = None) -> Trainer:
    """Build a Trainer that writes checkpoints atomically, with its own callbacks unless others are given."""
    from lightning.pytorch import Trainer

    from mimic_pl.checkpoints.atomic_io import AtomicCheckpointIO

    arguments = {**vars(settings), "plugins": settings.plugins or AtomicCheckpointIO()}
    return Trainer(**arguments if callbacks is None else {**arguments, "callbacks": callbacks})
