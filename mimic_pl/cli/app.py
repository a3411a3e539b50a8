"""The command-line program: LightningCLI with this project's callbacks, runs and errors."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mimic_pl.atomic_checkpoint_io import AtomicCheckpointIO, remove_unfinished
from mimic_pl.callbacks import (
    ExactResume,
    FailureMonitor,
    Interruption,
    PredictionWriter,
    ResultTable,
    SamplePanels,
)
from mimic_pl.cli.additions import with_additions
from mimic_pl.cli.choice import Choice, check_data_root, choose_run, require_same_task, short_path
from mimic_pl.cli.help import ALL
from mimic_pl.cli.parser import Parser
from mimic_pl.cli.problems import DEBUG, as_mimic_error, constructing, debugging, paragraph
from mimic_pl.cli.program import ABOUT, COMMANDS, STAGES
from mimic_pl.cli.quiet import quiet_libraries
from mimic_pl.cli.run_config import RunConfig
from mimic_pl.data.base import BaseDataModule
from mimic_pl.files import acquire_lock
from mimic_pl.model import MIMIC
from mimic_pl.runs import RUNS, Run, run_of_checkpoint

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
        strict = {"exit_on_error": False}
        super().__init__(
            MIMIC,
            BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=43,
            parser_class=Parser,
            save_config_callback=RunConfig,
            # A resumed run continues in its folder and rewrites its configuration.
            save_config_kwargs={"overwrite": True},
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
                command.load().add_arguments(own, complete=False)
                action.add_subcommand(name, own, help=command.summary)

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
        parser.add_lightning_class_args(ResultTable, "table")
        parser.add_lightning_class_args(FailureMonitor, "monitor")
        parser.set_defaults(CALLBACK_DEFAULTS)

    def before_instantiate_classes(self) -> None:
        """Check the data folder, and the run to resume, before anything heavy loads."""
        config = self.config[self.subcommand]
        check_data_root(config)
        if self.choice.run is not None:
            if self.subcommand == "fit":
                require_same_task(self.choice.run, config)
            else:
                self.save_config_callback = None  # keep the run's training configuration

    def before_fit(self) -> None:
        """Lock the run's folder, and remove temporary files of killed runs."""
        folder = self._lock_run()
        if folder is not None:
            for saver in self.trainer.checkpoint_callbacks:
                remove_unfinished(Path(getattr(saver, "dirpath", None) or folder / "checkpoints"))

    def before_test(self) -> None:
        """Lock the run's results."""
        self._lock_run()

    def before_predict(self) -> None:
        """Lock the run's links."""
        self._lock_run()

    def _lock_run(self) -> Path | None:
        """Lock the run's folder in the process that writes there, and return it."""
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # collective: must be called by every process
        writes = not self.trainer.fast_dev_run and "://" not in folder  # type: ignore[attr-defined]
        if not writes or not self.trainer.is_global_zero:
            return None
        # One lock per command: a run may be tested while it trains.
        self.resources.callback(acquire_lock(Path(folder), f".{self.subcommand}.lock").release)
        return Path(folder)

    def after_fit(self) -> None:
        """Print the best checkpoint and the next command."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if best:
            folder = run_of_checkpoint(best)
            where = "" if folder is None else f" --run {short_path(folder.folder)}"
            _print(f"Best checkpoint: {short_path(Path(best))}. To evaluate it on the test split: mimic-pl test{where}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer; it writes into the folder of the chosen run, or of a new one."""
        run = self.choice.run
        logger = self._get(self.config_init, "trainer").logger
        if run is None:
            root = str(self._get(self.config_init, "trainer").default_root_dir or Path.cwd())
            # Under SLURM, Lightning names runs after their job.
            if logger in (None, True) and "://" not in root and not SLURMEnvironment.detect():
                kwargs["logger"] = NewVersion(os.path.expanduser(root), name=RUNS)
        else:
            if logger is False:
                kwargs["default_root_dir"] = str(run.folder)
            elif logger in (None, True) or isinstance(logger, TensorBoardLogger):
                kwargs["logger"] = _logger_of(run)
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        # Lightning rejects these callbacks if the Trainer has no logger, or no checkpointing.
        if config.get("logger") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        else:
            callbacks = [*callbacks, *self._last_checkpoint(callbacks)]
        callbacks = [*callbacks, ExactResume(), Interruption()]
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
    given = [arg for arg in given if arg not in (DEBUG, ALL)]
    _add_working_directory_to_path()
    quiet_libraries()
    set_parsing_settings(add_print_completion_argument=True)
    try:
        if given[0] in COMMANDS and given[0] not in STAGES:
            if status := COMMANDS[given[0]].load().run(given[1:]):
                sys.exit(status)
            return  # without SystemExit, for notebooks
        choice = choose_run(given)
        choice = choice._replace(args=list(with_additions(choice.args)))
        if choice.note:
            _print(choice.note)
        with ExitStack() as resources:
            MimicCLI(choice, resources)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # raised by Lightning on Ctrl-C
            sys.exit(INTERRUPTED)
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        problem = as_mimic_error(error, given)
        print(f"error: {paragraph(problem)}", file=sys.stderr)
        sys.exit(problem.exit_code)


def _add_working_directory_to_path() -> None:
    """Make modules in the working directory importable, as a console script does not by itself.

    It is last in the path, so that nothing there shadows a library.
    """
    here = str(Path.cwd())
    if not getattr(sys.flags, "safe_path", False) and not {"", here} & set(sys.path):
        sys.path.append(here)


class NewVersion(TensorBoardLogger):
    """TensorBoardLogger whose ``version_N`` is unique even if several processes start at once."""

    def _get_next_version(self) -> int:
        version = super()._get_next_version()
        while getattr(rank_zero_only, "rank", 0) == 0:
            try:
                (Path(self.root_dir) / f"version_{version}").mkdir(parents=True)
            except FileExistsError:
                if not Path(self.root_dir).is_dir():
                    raise
                version += 1
            else:
                break
        return version


def _logger_of(run: Run) -> TensorBoardLogger:
    """A logger that writes into a run's folder."""
    folder = run.folder
    numbered = re.fullmatch(r"version_(\d+)", folder.name)
    version = int(numbered.group(1)) if numbered else folder.name
    return TensorBoardLogger(str(folder.parent.parent), name=folder.parent.name, version=version)


@rank_zero_only
def _print(text: str) -> None:
    print(text, flush=True)
