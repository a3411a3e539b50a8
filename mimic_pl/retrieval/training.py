"""From a trained first stage to a trained cross-encoder: candidate lists, training, evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.table import Table

from mimic_pl.checkpoints.reader import read_checkpoint
from mimic_pl.data.base import BaseDataModule
from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.errors import ConfigError
from mimic_pl.files import write_file
from mimic_pl.model import MIMIC
from mimic_pl.ranking import EntityIndex, fingerprint
from mimic_pl.records import Mention
from mimic_pl.retrieval.candidates import CandidateLists, first_stage_lists
from mimic_pl.retrieval.cross_encoder_module import CrossEncoderModule
from mimic_pl.retrieval.list_data import CandidateListData

RESULTS = "results.json"
"""File in the cross-encoder's folder with its results on the development and the test split."""


FoldRun = tuple[MIMIC, BaseDataModule]
"""Model and data of a run with :attr:`~mimic_pl.data.MELDataModule.left_out_fold`, from :func:`~mimic_pl.load_run`."""


def lists_of_run(
    model: MIMIC,
    data: BaseDataModule,
    splits: Sequence[str],
    top_k: int,
    folder: Path,
    fold_runs: Sequence[FoldRun] = (),
) -> dict[str, CandidateLists]:
    """The first stage's candidate lists of some splits; those that are in the folder already are read.

    A first stage knows the mentions that it was trained on, and its lists of them have few of the errors that it makes
    on others. With ``fold_runs``, training mentions are listed by models that were not trained on them (cross-fitting).

    Args:
        model: The first stage, on its device, from :func:`~mimic_pl.load_run`.
        data: Its data, from :func:`~mimic_pl.load_run`.
        splits: ``train``, ``val``, ``test``.
        top_k: Number of candidates.
        folder: Folder of the lists, ``train.parquet`` and so on.
        fold_runs: Runs that list the training mentions, of one first stage: each those of the fold that it left out.

    Raises:
        ConfigError: The data module has no such split, or the folds are not those of its training mentions.
        DataError: Lists in the folder cannot be used.
    """
    for stage in dict.fromkeys("test" if split == "test" else "fit" for split in splits):
        data.setup(stage)
    ranked = data.ranked
    model.processor = ranked.processor  # fitted to the knowledge base
    absent = [split for split in splits if split not in ranked.mentions]
    if absent:
        raise ConfigError(f"The data {data.title} has no {' and no '.join(absent)} split for its knowledge base.")
    stages = {split: [(model, ranked.mentions[split])] for split in splits}
    if fold_runs and "train" in stages:
        stages["train"] = _left_out(ranked, fold_runs)
    origins = {
        split: f"{' '.join(fingerprint(own.encoder, own.matcher) for own, _ in parts)}, top {top_k}"
        for split, parts in stages.items()
    }
    indices: dict[MIMIC, EntityIndex] = {}  # one at a time, since each may take gigabytes
    for split, parts in stages.items():
        path = folder / f"{split}.parquet"
        if path.exists():
            continue
        made = []
        for own, mentions in parts:
            if own not in indices:
                indices = {own: own.build_index(ranked.entities, show_progress_bar=True)}
            description = f"Listing candidates ({split})"
            made.append(first_stage_lists(own, mentions, ranked.entities, indices[own], top_k, description))
        CandidateLists.joined(made, ranked.mentions[split]).write(path, origins[split])
    return {
        split: CandidateLists.read(folder / f"{split}.parquet", origin, ranked.mentions[split], ranked.entities)
        for split, origin in origins.items()
    }


def _left_out(ranked: MELDataModule, fold_runs: Sequence[FoldRun]) -> list[tuple[MIMIC, list[Mention]]]:
    """Models with the training mentions that they leave out."""
    stages = []
    for model, data in fold_runs:
        model.processor = model.processor.fit(ranked.entities)  # its own, which may be another one
        stages.append((model, data.ranked.left_out_mentions()))
    left_out = [mention.id for _, mentions in stages for mention in mentions]
    if sorted(left_out) != sorted(mention.id for mention in ranked.mentions["train"]):
        raise ConfigError(
            f"The fold runs leave out {len(left_out)} training mentions ({len(set(left_out))} different ones), but "
            f"each of the first stage's {len(ranked.mentions['train'])} must be left out by one of them. Train a run "
            "for each fold with the first stage's data and data.seed: --data.left_out_fold [0,2], and [1,2]."
        )
    return stages


def train_cross_encoder(
    trainer: Trainer, module: CrossEncoderModule, data: CandidateListData, folder: Path
) -> dict[str, dict[str, float]]:
    """Train a cross-encoder, save it with the weights of its best validation, and evaluate it.

    Without training (``max_epochs`` 0), a trained one gets the weight of another first stage.

    Args:
        trainer: Trains it.
        module: The cross-encoder.
        data: Its lists: ``train``, ``val`` and, if there is one, ``test``.
        folder: The folder to write to: as :meth:`CrossEncoder.save_pretrained`, and ``results.json``.

    Returns:
        Metrics by split and name; see :class:`CrossEncoderModule`.

    Raises:
        ConfigError: The Trainer saves no checkpoint by a metric of the validation.
        StoreError: The disk is full, or the folder is not writable.
    """
    savers = [own for own in trainer.checkpoint_callbacks if isinstance(own, ModelCheckpoint) and own.monitor]
    if not savers:
        raise ConfigError("Training needs a ModelCheckpoint with a monitor, such as 'val/mrr', to choose the weights.")
    trainer.fit(module, data)
    best = read_checkpoint(savers[0].best_model_path) if savers[0].best_model_path else None
    if best is None or best["global_step"] < trainer.global_step:  # not the weights that were validated last
        if best is not None:
            module.load_state_dict(best["state_dict"])
        trainer.validate(module, data, verbose=False)
    module.trained().save_pretrained(folder)
    results = {"val": _metrics(trainer, "val")}
    if "test" in data.lists:
        trainer.test(module, data, verbose=False)
        results["test"] = _metrics(trainer, "test")
    write_file(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    return results


def _metrics(trainer: Trainer, stage: str) -> dict[str, float]:
    prefix = f"{stage}/"
    return {
        name.removeprefix(prefix): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix)
    }


def results_table(results: dict[str, dict[str, float]]) -> Table:
    """Table of results in percent: of the first stage, of the cross-encoder alone, of both, and what it gained."""
    table = Table(
        caption="in percent; a gold that is not among the candidates is a miss. Gain: both minus first stage, with a "
        "95 % interval by paired bootstrap over the mentions."
    )
    table.add_column("split")
    table.add_column("order of the candidates")
    for name in ("hits@1", "hits@3", "mrr"):
        table.add_column(name, justify="right")
    for split, metrics in results.items():
        table.add_section()
        for title, prefix in (("first stage", "first_"), ("cross-encoder alone", "alone_"), ("both", "")):
            cells = [f"{100 * metrics[prefix + name]:.2f}" for name in ("hits@1", "hits@3", "mrr")]
            table.add_row(split, title, *cells, style="bold" if not prefix else None)
        gain, low, high = (100 * metrics[name] for name in ("gain", "gain_low", "gain_high"))
        table.add_row(split, "gain", f"{gain:+.2f} ({low:+.2f} to {high:+.2f})", "", "")
    return table
