"""``mimic-pl robustness``: a run's results on increasingly degraded mentions."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from jsonargparse import ArgumentParser

from mimic_pl.cli.run_evaluation import add_evaluation_arguments, build_evaluation, choose_evaluation
from mimic_pl.errors import ConfigError


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    text = "Kinds of degradation, separated by commas (default: all)."
    parser.add_argument("--kinds", type=str | None, default=None, help=text)
    parser.add_argument("--split", type=Literal["test", "val"], default="test", help="Split to evaluate.")
    parser.add_argument("--seed", type=int, default=43, help="Seed of the degradations.")
    add_evaluation_arguments(parser, complete)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigError: There is no run, or no such kind.
    """
    from rich.console import Console
    from tqdm.auto import tqdm

    from mimic_pl.data.degradation import KINDS
    from mimic_pl.files import acquire_lock
    from mimic_pl.robustness import grades_of, measure, robustness_table, write_grades

    chosen = choose_evaluation("robustness", parser, args)
    config = chosen.config
    degradations = grades_of(config.kinds or ",".join(kind.kind for kind in KINDS), config.seed)
    # A single progress bar covers all grades.
    model, data, trainer = build_evaluation(parser, chosen, enable_progress_bar=False)
    limit = trainer.limit_test_batches if config.split == "test" else trainer.limit_val_batches
    if trainer.fast_dev_run or limit != 1.0 or isinstance(limit, int):  # type: ignore[attr-defined]
        raise ConfigError(
            f"robustness evaluates the whole split, but the Trainer is limited to {limit} of its batches. Remove "
            f"--trainer.fast_dev_run, or set --trainer.limit_{config.split}_batches 1.0."
        )
    if trainer.is_global_zero:
        print(chosen.note, flush=True)
    grades = measure(trainer, model, data, degradations, config.split, str(chosen.checkpoint))
    bar = tqdm(grades, "Evaluating degradations", len(degradations), leave=False, disable=not trainer.is_global_zero)
    with ExitStack() as resources:
        if trainer.is_global_zero:
            resources.callback(acquire_lock(chosen.folder, ".robustness.lock").release)
        measured = list(bar)
        path = write_grades(chosen.folder, measured) if trainer.is_global_zero else None
    if path is not None:
        mentions = len(data.ranked.mentions[config.split])
        title = f"{type(data).__name__}, {config.split}: {mentions:,} mentions, seed {config.seed}"
        Console().print(robustness_table(measured, title))
        print(f"Written: {path}")
    return 0
