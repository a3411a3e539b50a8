"""The command-line program: LightningCLI with this project's callbacks, runs and errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden

from mimic_pl import __version__
from mimic_pl.callbacks import (
    CalibratedResults,
    ExactResume,
    FailureMonitor,
    Interruption,
    PredictionWriter,
    ResultTable,
    SamplePanels,
)
from mimic_pl.checkpoints.atomic_io import AtomicCheckpointIO, remove_unfinished
from mimic_pl.cli.additions import with_additions
from mimic_pl.cli.choice import Choice, Start, choose_checkpoint, choose_run, short_path
from mimic_pl.cli.config_checks import check_config
from mimic_pl.cli.help import ALL
from mimic_pl.cli.parser import Parser
from mimic_pl.cli.problems import DEBUG, as_mimic_error, constructing, debugging, paragraph
from mimic_pl.cli.program import ABOUT, COMMANDS, STAGES
from mimic_pl.cli.quiet import quiet_libraries
from mimic_pl.cli.run_config import RunConfig
from mimic_pl.cli.run_folder import RunTrainer, loggers_in, new_folder
from mimic_pl.cli.usage import short_message
from mimic_pl.data.base import BaseDataModule
from mimic_pl.errors import ConfigError, UsageError
from mimic_pl.escaping import printable
from mimic_pl.files import acquire_lock
from mimic_pl.home import expand_home
from mimic_pl.model import MIMIC
from mimic_pl.trainer_folder import trainer_folder

CALLBACK_DEFAULTS = {
    "checkpoint.monitor": "val/mrr",
    "checkpoint.mode": "max",
    "checkpoint.save_last": True,
    "checkpoint.filename": "epoch={epoch}-mrr={val/mrr:.4f}",
    "checkpoint.auto_insert_metric_name": False,  # metric names have slashes
    "early_stopping.monitor": "val/mrr",
    "early_stopping.mode": "max",
    "early_stopping.patience": 3,
}


INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class MimicCLI(LightningCLI):
    """LightningCLI with this project's callbacks, and with commands that work on existing runs.

    Args:
        choice: The command line and the run that it works on.
        resources: Collects resources of the command, such as locks, to be released at its end.
    """

    def __init__(self, choice: Choice, resources: ExitStack) -> None:
        self.choice = choice
        self.resources = resources
        self.start: Start
        strict = {"exit_on_error": False}
        super().__init__(
            MIMIC,
            BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=43,
            trainer_class=RunTrainer,
            parser_class=Parser,
            save_config_callback=RunConfig,
            parser_kwargs={
                "prog": "mimic-pl",
                "description": ABOUT,
                **strict,
                **{name: {"description": COMMANDS[name].summary, **strict} for name in STAGES},
            },
            args=choice.args,
        )

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        # The other commands are run elsewhere; they are added here for shell completion and error messages.
        action: Any = parser._subcommands_action
        for name, command in COMMANDS.items():
            if name not in STAGES:
                own = LightningArgumentParser(description=command.about, exit_on_error=False)
                action.add_subcommand(name, own, help=command.summary)
                command.load().add_arguments(own, complete=False)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        given = self.choice.args[0] if self.choice.args else None
        if given in self.subcommands() and given != subcommand:
            return self.init_parser(**kwargs)  # only listed, so its arguments are not needed
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            text = "Folder of the training run (default: the newest in lightning_logs)."
            parser.add_argument("--run", type=str | None, default=None, help=text)
        # By default, Lightning would run code from a checkpoint loaded from a URL.
        parser.set_defaults({"weights_only": True})
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # ResultTable shows the metrics
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # PredictionWriter streams them to a file
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks of every run, each configurable under its own key."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(LearningRateMonitor, "learning_rate")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(SamplePanels, "panels")
        parser.add_lightning_class_args(ResultTable, "table")  # after the predictions: results are written first
        parser.add_lightning_class_args(FailureMonitor, "monitor")
        parser.set_defaults(CALLBACK_DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, and check it before anything heavy loads.

        Raises:
            ConfigError: A number is out of its range, or the data folder does not exist.
            UsageError: The configuration of the chosen run is that of another version.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            run = self.choice.run
            if run is None or run.version == __version__:
                raise
            raise UsageError(
                f"{short_message(str(error))} The run {short_path(run.folder)} was started by {run.version} of "
                f"mimic-pl, this is {__version__}: adapt {short_path(run.config)}, or install that version."
            ) from error
        check_config(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Resolve ``~``, and choose the checkpoint.

        Lightning would read hyperparameters from it here, which override the command line.
        """
        command = self.config.get("subcommand")
        if command is None:
            return
        config = expand_home(self.config[command])
        self.start = choose_checkpoint(command, config, self.choice.run)
        config.ckpt_path = None if self.start.checkpoint is None else str(self.start.checkpoint)
        if self.start.note:
            _print(self.start.note)

    def before_instantiate_classes(self) -> None:
        """Keep the training configuration of a run that is evaluated."""
        if self.start.run is not None and self.subcommand != "fit":
            self.save_config_callback = None

    def before_fit(self) -> None:
        """Lock the run's folder, remove temporary files of killed runs, and prepare for training without validation."""
        folders = {Path(saver.dirpath) for saver in _savers(self.trainer) if saver.dirpath is not None}
        for folder in folders:
            self._require_own(folder)
        if self._lock_run() is not None:
            for folder in folders:
                remove_unfinished(folder)
        if not self._validates():
            self._without_validation()
        for stopping in self.trainer.early_stopping_callbacks:
            # Steps or time may run out before the first validation.
            stopping.strict = (
                stopping.strict
                and self.trainer.max_steps == -1
                and self.config[self.subcommand].trainer.max_time is None
            )

    def _require_own(self, checkpoints: Path) -> None:
        """Refuse to mix checkpoints with those of another training."""
        loaded = None if self.start.checkpoint is None else self.start.checkpoint.resolve().parent
        if self.start.run is None and loaded != checkpoints.resolve() and any(checkpoints.glob("*.ckpt")):
            raise ConfigError(
                f"{checkpoints} contains checkpoints of another training. Choose another folder with "
                "--checkpoint.dirpath, or continue that training with --ckpt_path last."
            )

    def _validates(self) -> bool:
        """Whether training will validate at all."""
        trainer = self.trainer
        every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
        return (
            trainer.limit_val_batches != 0
            and is_overridden("val_dataloader", self.datamodule, LightningDataModule)
            and not (every is not None and epochs is not None and 0 <= epochs < every)
        )

    def _without_validation(self) -> None:
        """Remove the callbacks that need its results, and save the last checkpoint after each epoch."""
        trainer: Any = self.trainer
        monitors = [callback for callback in trainer.callbacks if getattr(callback, "monitor", None) is not None]
        removed = [callback for callback in monitors if callback.monitor.startswith("val/")]
        trainer.callbacks = [callback for callback in trainer.callbacks if callback not in removed]
        for saver in _savers(trainer):
            if saver._save_on_train_epoch_end is None:
                saver._save_on_train_epoch_end = True
        if removed:
            _print(
                "This training does not validate: it does not stop early, and saves only its last checkpoint, which "
                "'mimic-pl test' uses."
            )

    def before_test(self) -> None:
        """Lock the run's results."""
        self._lock_run()

    def before_predict(self) -> None:
        """Lock the run's links."""
        self._lock_run()

    def _lock_run(self) -> Path | None:
        """Lock the run's folder in the process that writes there, and return it."""
        folder = trainer_folder(self.trainer)
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            return None
        # One lock per command: a run may be tested while it trains.
        self.resources.callback(acquire_lock(folder, f".{self.subcommand}.lock").release)
        return folder

    def after_fit(self) -> None:
        """Print the best checkpoint, or the last one of a training without validation, and the next command."""
        saver = next((saver for saver in _savers(self.trainer) if saver.best_model_path), None)
        if saver is not None:
            kind, path = "Last" if saver.monitor is None else "Best", short_path(Path(saver.best_model_path))
            run = short_path(Path(self.trainer.default_root_dir))
            _print(f"{kind} checkpoint: {path}. To evaluate it on the test split: mimic-pl test --run {run}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, all of whose files are in the folder of the chosen run, or of a new one."""
        built = self._get(self.config_init, "trainer")
        if not built.fast_dev_run:
            given = self.config[self.subcommand].trainer
            folder = self.start.run.folder if self.start.run else new_folder(given, self.start.parent)
            loggers = loggers_in(folder, given.logger, built.logger)
            kwargs |= {"default_root_dir": str(folder), "logger": loggers}
            self.resources.callback(_remove_if_empty, folder)
        trainer = super().instantiate_trainer(**kwargs)
        if not built.fast_dev_run:
            for saver in _savers(trainer):
                saver.dirpath = saver.dirpath or str(folder / "checkpoints")
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        # Lightning rejects these callbacks if the Trainer has no logger, or no checkpointing.
        if config.get("logger") in (False, []):
            callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        else:
            callbacks = [*callbacks, *self._last_checkpoint(callbacks)]
        callbacks = [*callbacks, CalibratedResults(), ExactResume(), Interruption()]
        given = config.get("plugins") or []
        plugins = given if isinstance(given, list) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config = {**config, "plugins": [*plugins, AtomicCheckpointIO()]}
        with constructing("Trainer"):
            return super()._instantiate_trainer(config, callbacks)

    def _last_checkpoint(self, callbacks: list[Callback]) -> Iterator[ModelCheckpoint]:
        """A callback that writes ``last.ckpt``; ModelCheckpoint itself does so only after a top-k checkpoint."""
        config = self._get(self.config, "checkpoint")
        for best in callbacks:
            if isinstance(best, ModelCheckpoint) and best.save_last is True:
                best.save_last = False
                when = ("every_n_train_steps", "train_time_interval", "every_n_epochs", "save_on_train_epoch_end")
                yield ModelCheckpoint(
                    best.dirpath,
                    best.CHECKPOINT_NAME_LAST,
                    enable_version_counter=False,
                    save_weights_only=best.save_weights_only,
                    **{name: config[name] for name in when},
                )


def run(given: list[str]) -> None:
    """Run a command; see :func:`mimic_pl.cli.main`."""
    debug = debugging(given)
    given = [_as_in_a_shell(arg) for arg in given if arg not in (DEBUG, ALL)]
    _add_working_directory_to_path()
    quiet_libraries()
    set_parsing_settings(add_print_completion_argument=True)
    try:
        if given[0] in COMMANDS and given[0] not in STAGES:
            if status := _run_own(given[0], given[1:]):
                sys.exit(status)
            return  # without SystemExit, for notebooks
        choice = choose_run(given)
        choice = choice._replace(args=list(with_additions(choice.args)))
        with ExitStack() as resources:
            MimicCLI(choice, resources)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # raised by Lightning on Ctrl-C
            sys.exit(INTERRUPTED)
        raise
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        problem = as_mimic_error(error, given)
        print(f"error: {paragraph(problem)}", file=sys.stderr)
        sys.exit(problem.exit_code)


def _run_own(name: str, args: list[str]) -> int:
    """Run a command that is not a stage of the Trainer; its exit status."""
    module = COMMANDS[name].load()
    parser = LightningArgumentParser(prog=f"mimic-pl {name}", description=COMMANDS[name].about, exit_on_error=False)
    module.add_arguments(parser, complete=True)
    status: int = module.run(parser, args)
    return status


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]


def _add_working_directory_to_path() -> None:
    """Make modules in the working directory importable, as a console script does not by itself.

    It is last in the path, so that nothing there shadows a library.
    """
    here = str(Path.cwd())
    if not getattr(sys.flags, "safe_path", False) and not {"", here} & set(sys.path):
        sys.path.append(here)


def _as_in_a_shell(argument: str) -> str:
    """Resolve ``~`` in ``--option=~/path``, too."""
    option, equals, value = argument.partition("=")
    found: str = f"{option}={expand_home(value)}" if equals and option.startswith("-") else expand_home(argument)
    return found


def _remove_if_empty(folder: Path) -> None:
    """Remove the new folder of a command that failed before it wrote anything."""
    with suppress(OSError):
        folder.rmdir()


@rank_zero_only
def _print(text: str) -> None:
    print(printable(text), flush=True)
