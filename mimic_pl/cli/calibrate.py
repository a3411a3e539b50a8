"""``mimic-pl calibrate``: probabilities of a run's links, and of NIL."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from jsonargparse import ArgumentParser

from mimic_pl.cli.run_evaluation import add_evaluation_arguments, build_evaluation, choose_evaluation
from mimic_pl.errors import ConfigError


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    text = "Split to fit on; test results are only meaningful if it is not 'test'."
    parser.add_argument("--split", type=Literal["val", "test"], default="val", help=text)
    parser.add_argument("--top_k", type=int, default=10, help="Candidates among which probabilities are distributed.")
    text = "Expected fraction of mentions without an entity in the knowledge base."
    parser.add_argument("--nil_share", type=float, default=0.5, help=text)
    add_evaluation_arguments(parser, complete)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigError: There is no run, or an option is out of range.
        DataError: No mention of the split has its gold among its candidates.
    """
    from datetime import datetime, timezone

    from rich.console import Console

    from mimic_pl import __version__
    from mimic_pl.calibration import fit_calibration
    from mimic_pl.callbacks.calibrated_results import evaluate, results_table
    from mimic_pl.callbacks.list_collector import ListCollector
    from mimic_pl.cli.choice import short_path
    from mimic_pl.files import acquire_lock
    from mimic_pl.ranges import COUNT, require_ranges
    from mimic_pl.ranking import fingerprint

    chosen = choose_evaluation("calibrate", parser, args)
    config, folder = chosen.config, chosen.folder
    require_ranges({"top_k": COUNT}, {"top_k": config.top_k}, "--")
    if not 0 < config.nil_share < 1:
        raise ConfigError(f"--nil_share is {config.nil_share}; it must be a number above 0 and below 1.")
    collector = ListCollector(config.top_k)
    # Callbacks of the training might change the weights (WeightCalibration does); those of the checkpoint are wanted.
    # Ranks and scores do not depend on the number of processes, and the lists are needed in this one.
    one_process = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    model, data, trainer = build_evaluation(parser, chosen, [collector], **one_process)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ConfigError("calibrate evaluates the whole split. Remove --trainer.fast_dev_run.")
    print(chosen.note, flush=True)
    rank = trainer.validate if config.split == "val" else trainer.test
    rank(model, datamodule=data, ckpt_path=str(chosen.checkpoint), verbose=False, weights_only=True)
    lists = collector.lists()
    if lists is None:
        raise ConfigError(f"No mention was ranked. Set --trainer.limit_{config.split}_batches 1.0.")
    source = {
        "split": config.split,
        "data": data.title,
        "mentions": len(lists.scores),
        "mentions_without_gold_in_kb": int((~lists.known).sum()),
        "mentions_with_gold_below_top_k": int((lists.known & ~lists.first(config.top_k).is_gold.any(dim=1)).sum()),
        "entities": len(data.ranked.entities),
        "nil_share": config.nil_share,
        "checkpoint": chosen.checkpoint.name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mimic_pl": __version__,
    }
    weights = fingerprint(model.encoder, model.matcher)
    calibration = fit_calibration(lists, config.top_k, config.nil_share, weights, source)
    with ExitStack() as resources:
        resources.callback(acquire_lock(folder, ".calibrate.lock").release)
        path = calibration.save(folder)
    title = f"{data.title}, {config.split}: the mentions that were fitted on"
    Console().print(results_table(evaluate(lists, calibration), title))
    print(f"Temperature T = {calibration.temperature:.4g}, score of NIL b = {calibration.nil_score:.4g}.")
    if (relative := calibration.relative) is not None:
        print(
            f"For lists of {config.top_k}, scores relative to their mean: T = {relative.temperature:.4g}, "
            f"b = {relative.nil_score:.4g}."
        )
    print(
        f"This is for {config.nil_share:.0%} of mentions without an entity in the knowledge base: the more there are, "
        "the more often the answer is NIL. If you expect another fraction, say so with --nil_share."
    )
    print(f"Written: {short_path(path)}. For results on the test split: mimic-pl test --run {short_path(path.parent)}")
    return 0
