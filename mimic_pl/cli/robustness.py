"""``mimic-pl robustness``: a run's results on increasingly degraded mentions."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from jsonargparse import ArgumentParser

from mimic_pl.cli.program import COMMANDS
from mimic_pl.errors import ConfigError


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options.

    Args:
        parser: The parser; a LightningArgumentParser if complete.
        complete: Add every option of the configurable classes; if false, none of them is loaded (for help).
    """
    from mimic_pl.cli.sections import add_config_argument, add_data_argument, add_model_argument

    text = "Configuration whose 'trainer', 'model' and 'data' sections override those of the run."
    add_config_argument(parser, text)
    text = "Folder of the training run (default: the newest in lightning_logs)."
    parser.add_argument("--run", type=str | None, help=text)
    parser.add_argument("--ckpt_path", type=str | None, help="Checkpoint: a file, 'best' (the default) or 'last'.")
    text = "Kinds of degradation, separated by commas (default: all)."
    parser.add_argument("--kinds", type=str | None, default=None, help=text)
    parser.add_argument("--split", type=Literal["test", "val"], default="test", help="Split to evaluate.")
    parser.add_argument("--seed", type=int, default=43, help="Seed of the degradations.")
    if complete:
        from lightning.pytorch import Trainer

        parser.add_lightning_class_args(Trainer, "trainer")  # type: ignore[attr-defined]
    else:
        parser.add_argument(
            "--trainer", metavar="CONFIG", help="Trainer; --trainer.devices N and so on are its options."
        )
    add_model_argument(parser, complete)
    add_data_argument(parser, complete)


def run(args: list[str]) -> int:
    """Run the command.

    Args:
        args: The command line after ``robustness``.

    Returns:
        The exit status.

    Raises:
        ConfigError: There is no run, or no such kind.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningArgumentParser
    from rich.console import Console
    from tqdm.auto import tqdm

    from mimic_pl.checkpoints.atomic_io import AtomicCheckpointIO
    from mimic_pl.cli.choice import choose_checkpoint, choose_run
    from mimic_pl.cli.config_checks import check_config
    from mimic_pl.cli.sections import with_sections
    from mimic_pl.data.degradation import KINDS
    from mimic_pl.files import acquire_lock
    from mimic_pl.robustness import grades_of, measure, robustness_table, write_grades

    choice = choose_run(["robustness", *args])
    about = COMMANDS["robustness"].about
    parser = LightningArgumentParser(prog="mimic-pl robustness", description=about, exit_on_error=False)
    add_arguments(parser, complete=True)
    config = parser.parse_args(list(with_sections(choice.args[1:], ("trainer", "model", "data"))))
    start = choose_checkpoint("robustness", config, choice.run)
    if choice.run is None:
        raise ConfigError("robustness evaluates a trained run: omit --config and --model, or add --run FOLDER.")
    if start.run is None:
        raise ConfigError(
            f"{start.checkpoint} is not a checkpoint of the run {choice.run.folder}, into whose folder the results are "
            "written. Pass one of its checkpoints, or another run with --run FOLDER."
        )
    degradations = grades_of(config.kinds or ",".join(kind.kind for kind in KINDS), config.seed)
    check_config(config)
    # The run's files are not changed, and a single progress bar covers all grades.
    config.trainer.default_root_dir = str(start.run.folder)
    for option in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
        config.trainer[option] = False
    built = parser.instantiate_classes(config)
    trainer = Trainer(**{**vars(built.trainer), "plugins": built.trainer.plugins or AtomicCheckpointIO()})
    limit = trainer.limit_test_batches if config.split == "test" else trainer.limit_val_batches
    if trainer.fast_dev_run or limit != 1.0 or isinstance(limit, int):  # type: ignore[attr-defined]
        raise ConfigError(
            f"robustness evaluates the whole split, but the Trainer is limited to {limit} of its batches. Remove "
            f"--trainer.fast_dev_run, or set --trainer.limit_{config.split}_batches 1.0."
        )
    if trainer.is_global_zero:
        print(start.note, flush=True)
    grades = measure(trainer, built.model, built.data, degradations, config.split, str(start.checkpoint))
    bar = tqdm(grades, "Evaluating degradations", len(degradations), leave=False, disable=not trainer.is_global_zero)
    with ExitStack() as resources:
        if trainer.is_global_zero:
            resources.callback(acquire_lock(start.run.folder, ".robustness.lock").release)
        measured = list(bar)
        path = write_grades(start.run.folder, measured) if trainer.is_global_zero else None
    if path is not None:
        mentions = len(built.data.ranked.mentions[config.split])
        title = f"{type(built.data).__name__}, {config.split}: {mentions:,} mentions, seed {config.seed}"
        Console().print(robustness_table(measured, title))
        print(f"Written: {path}")
    return 0
