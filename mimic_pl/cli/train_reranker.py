"""``mimic-pl train-reranker``: trains a cross-encoder on the candidate lists of a run."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from mimic_pl.cli.run_evaluation import build_trainer

DEFAULTS = {
    "trainer.max_epochs": 1,
    "trainer.gradient_clip_val": 1.0,
    "trainer.devices": 1,
    "trainer.num_sanity_val_steps": 0,
    "checkpoint.monitor": "val/mrr",
    "checkpoint.mode": "max",
}
"""Defaults other than Lightning's."""


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    from mimic_pl.cli.sections import add_config_argument

    add_config_argument(parser, "Configuration, such as cli_configs/recipes/cross_encoder.yaml.")
    text = "Folder of the training run that is the first stage (default: the newest in lightning_logs)."
    parser.add_argument("--run", type=str | None, default=None, help=text)
    text = "Its checkpoint: best, last, or a file."
    parser.add_argument("--ckpt_path", type=str, default="best", help=text)
    text = (
        "Folders of runs with data.left_out_fold, one for each fold: the training mentions are listed by the run that "
        "left them out, so that their lists have the errors of new mentions."
    )
    parser.add_argument("--fold_runs", type=list[str], default=[], help=text)
    text = "Folder for the cross-encoder, its lists and results (default: cross_encoder in the run's folder)."
    parser.add_argument("--output", type=str | None, default=None, help=text)
    parser.add_argument("--seed_everything", type=int, default=43, help="Seed of the head's initial weights.")
    if complete:
        from lightning.pytorch import Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint

        from mimic_pl.retrieval import CandidateListData, CrossEncoderModule

        parser.add_lightning_class_args(Trainer, "trainer")  # type: ignore[attr-defined]
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")  # type: ignore[attr-defined]
        parser.add_class_arguments(CrossEncoderModule, "model")
        parser.add_class_arguments(CandidateListData, "data", skip={"lists", "cross_encoder"}, instantiate=False)
        parser.set_defaults(DEFAULTS)
    else:
        for name, text in {
            "trainer": "Trainer; --trainer.max_epochs N and so on are its options.",
            "model": "Training; --model.cross_encoder.pretrained NAME, --model.warmup X and so on are its options.",
            "data": "Lists; --data.train_candidates N, --data.batch_size N and so on are its options.",
        }.items():
            parser.add_argument(f"--{name}", metavar="CONFIG", help=text)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigError: There is no run, its data has no training or validation split, or several devices are asked for.
    """
    from lightning.pytorch import seed_everything
    from rich.console import Console

    from mimic_pl.cli.config_checks import check_config
    from mimic_pl.data.folder import MissingSplitError
    from mimic_pl.errors import ConfigError
    from mimic_pl.files import acquire_lock, write_file
    from mimic_pl.home import expand_home, expanded
    from mimic_pl.retrieval import CandidateListData
    from mimic_pl.retrieval.training import lists_of_run, results_table, train_cross_encoder
    from mimic_pl.runs import load_run, newest_run

    config = expand_home(parser.parse_args(args))
    check_config(config)
    first_stage = Path(config.run).expanduser().resolve() if config.run else newest_run().folder
    folder = expanded(config.output) if config.output else first_stage / "cross_encoder"
    config.trainer.default_root_dir = str(folder)
    config.checkpoint.dirpath = config.checkpoint.dirpath or str(folder / "checkpoints")
    config.trainer.logger = False if config.trainer.logger is None else config.trainer.logger
    seed_everything(config.seed_everything, verbose=False)
    built = parser.instantiate(config)
    trainer = build_trainer(built.trainer, [built.checkpoint, *(built.trainer.callbacks or [])])
    if trainer.world_size > 1:
        raise ConfigError("train-reranker runs on one device: --trainer.devices 1.")
    lock = acquire_lock(folder, ".train.lock")
    try:
        model, data = load_run(first_stage, config.ckpt_path)
        model.to(trainer.strategy.root_device)
        splits, top_k = ["train", "val", "test"], built.model.cross_encoder.top_k
        folds = [load_run(Path(run).expanduser().resolve(), config.ckpt_path) for run in config.fold_runs]
        for of_fold, _ in folds:
            of_fold.to(trainer.strategy.root_device)
        with trainer.precision_plugin.forward_context():
            try:
                lists = lists_of_run(model, data, splits, top_k, folder / "lists", folds)
            except MissingSplitError:
                lists = lists_of_run(model, data, splits[:2], top_k, folder / "lists", folds)
        del model, folds
        write_file(folder / "config.yaml", parser.dump(config).encode())
        own = CandidateListData(lists, built.model.cross_encoder, **vars(config.data))
        results = train_cross_encoder(trainer, built.model, own, folder)
    finally:
        lock.release()
    Console().print(results_table(results))
    print(f"Written: {folder}. To link with it: CrossEncoder.from_pretrained({str(folder)!r})")
    return 0
