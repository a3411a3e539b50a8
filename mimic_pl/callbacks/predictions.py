"""Writes predictions and metrics into the run's folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import LightningModule, Trainer

from mimic_pl.calibration import Calibration
from mimic_pl.callbacks.calibrated_results import CalibratedResults
from mimic_pl.callbacks.results import EvaluatedMentions, metrics_by_group, metrics_by_score, missing_golds, title_of
from mimic_pl.checkpoints.atomic_io import write_run_file
from mimic_pl.data.protocol import Records, data_of
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.errors import ConfigError
from mimic_pl.files import sha256_of
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.ranking import Ranking
from mimic_pl.records import Entity, Mention
from mimic_pl.trainer_folder import trainer_folder

_log = logging.getLogger(__name__)


class PredictionWriter(EvaluatedMentions):
    """Writes the results of ``test`` and ``predict`` into the run's folder.

    - ``test`` writes ``predictions.jsonl``, one mention per line with its golds, its ranks (``null`` if no gold is in
      the knowledge base) and its top candidates, and ``metrics.json``, with results for golds seen and unseen in
      training in ``subsets`` if both occur;
    - ``predict`` writes ``links.jsonl``, one mention per line with its top candidates.

    If the run is calibrated (see :class:`~mimic_pl.callbacks.CalibratedResults`), candidates have a ``probability``,
    mentions a ``nil_probability``, and ``metrics.json`` the results of their ``calibration``.

    If only some of the mentions are evaluated (``limit_test_batches``), the files are ``predictions.partial.jsonl``,
    ``metrics.partial.json`` and ``links.partial.jsonl``, beside complete ones. ``metrics.json`` has the SHA-256 of
    ``predictions.jsonl``, by which ``mimic-pl report`` recognises files of different evaluations.

    With a custom Trainer, the folder is ``trainer.log_dir``; with a logger that has one folder for all runs, such as
    WandbLogger, it is ``save_dir/name/version``.

    Lines are in the order of the data set. They are streamed to a hidden file, which is renamed when complete. With
    several processes, each writes a part, and the first one merges them.

    Args:
        top_k: Candidates per mention; at most the model's ``ranker.top_k``.

    Raises:
        ConfigError: The model ranks fewer candidates than ``top_k``.
    """

    @in_range(top_k=COUNT)
    def __init__(self, top_k: int = 10) -> None:
        super().__init__()
        self.top_k = top_k
        self._part: IO[str] | None = None
        self._folder: Path | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's part of the predictions."""
        super().on_test_start(trainer, pl_module)
        self._open(trainer, "predictions.jsonl")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's part of the links."""
        super().on_predict_start(trainer, pl_module)
        self._open(trainer, "links.jsonl")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Write the batch's mentions with golds and ranks."""
        super().on_test_batch_end(trainer, pl_module, outputs, *args)
        self._write(trainer, outputs, "test", labelled=True)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Write the batch's mentions with their candidates."""
        super().on_predict_batch_end(trainer, pl_module, outputs, *args)
        self._write(trainer, outputs, "predict", labelled=False)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete ``predictions.jsonl`` and write ``metrics.json``."""
        data = data_of(trainer, Records)
        split = data.mentions["test"]
        mentions = self.evaluated(split)
        part = len(mentions) < len(split)
        predictions = self._close(trainer, "predictions.jsonl", part)
        if predictions is None:
            return
        degradation = getattr(data, "degradation", None)  # custom data modules may lack it
        groups = metrics_by_group(trainer.callback_metrics, "test")
        calibrated = CalibratedResults.of(trainer)
        summary = {
            "checkpoint": _relative(trainer.ckpt_path, predictions.parent),
            "data": title_of(trainer),
            **({} if degradation is None else {"degradation": str(degradation)}),
            "mentions": len(mentions),
            **({"mentions_in_split": len(split)} if part else {}),
            "mentions_without_gold_in_kb": missing_golds(mentions, data.entities),
            "entities": len(data.entities),
            "metrics": metrics_by_score(trainer.callback_metrics, "test"),
            **({"subsets": groups} if groups else {}),
            **({} if calibrated is None else calibrated.summary()),
        }
        write_metrics(predictions, summary)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete ``links.jsonl``."""
        mentions = data_of(trainer, Records).mentions["predict"]
        self._close(trainer, "links.jsonl", len(self.evaluated(mentions)) < len(mentions))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove this process's part."""
        if self._part is not None:
            self._part.close()
            Path(self._part.name).unlink(missing_ok=True)
            self._part = None

    def _open(self, trainer: Trainer, name: str) -> None:
        self._part = None
        folder = trainer_folder(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._entities: EntityTable | None = None
        self._part = _part_path(self._folder, name, trainer.global_rank).open("w", encoding="utf-8")

    def _write(self, trainer: Trainer, outputs: Any, split: str, labelled: bool) -> None:
        if self._part is None:
            return
        data = data_of(trainer, Records)
        mentions = data.mentions[split]
        ranking: Ranking = outputs["ranking"]
        available = ranking.top_entities.shape[1]
        if available < min(self.top_k, len(data.entities)):
            raise ConfigError(
                f"predictions.top_k is {self.top_k}, but the model keeps only {available} candidates per mention. "
                f"Increase the model's (--model.ranker.top_k {self.top_k}) or decrease the callback's."
            )
        if self._entities is None:
            self._entities = as_table(data.entities)
        ranks = {name: column.tolist() for name, column in ranking.ranks.items()}
        calibrated = CalibratedResults.of(trainer)
        calibration = None if calibrated is None else calibrated.calibration
        nil = None if calibration is None else calibration(ranking.top_scores["overall"])[1].tolist()
        for row, line in enumerate(candidate_lists(ranking, self._entities, self.top_k, calibration)):
            index = int(outputs["index"][row])
            mention = mentions[index]
            known = {name: column[row] for name, column in ranks.items()} if labelled else None
            record = prediction(mention, self._entities, line, known, None if nil is None else nil[row])
            self._part.write(f"{index}\t{json.dumps(record, ensure_ascii=False)}\n")

    def _close(self, trainer: Trainer, name: str, part: bool) -> Path | None:
        """Complete a file; the first process returns its path."""
        if self._part is None or self._folder is None:
            return None
        self._part.close()
        self._part = None
        trainer.strategy.barrier("predictions_written")
        if not trainer.is_global_zero:
            return None
        parts = [_part_path(self._folder, name, rank) for rank in range(trainer.world_size)]
        target = self._folder / name
        if part:
            target = partial_path(target)
            _log.warning("Only some of the mentions were evaluated: the results are in %s.", target)
        _merge(parts, target)
        return target


def partial_path(path: Path) -> Path:
    """Where results of only some of the mentions are written instead: ``metrics.partial.json``."""
    return path.with_suffix(f".partial{path.suffix}")


def write_metrics(predictions: Path, summary: dict[str, Any]) -> None:
    """Write ``metrics.json`` beside the ``predictions.jsonl`` of the same evaluation, whose SHA-256 it states.

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    path = predictions.with_name(predictions.name.replace("predictions", "metrics")).with_suffix(".json")
    content = json.dumps({**summary, "predictions_sha256": sha256_of(predictions)}, indent=2, ensure_ascii=False)
    write_run_file(path, (content + "\n").encode())


def prediction(
    mention: Mention,
    entities: EntityTable,
    candidates: list[dict[str, Any]],
    ranks: dict[str, int] | None = None,
    nil_probability: float | None = None,
) -> dict[str, Any]:
    """The output record of a mention.

    Args:
        mention: The mention.
        entities: The knowledge base.
        candidates: Candidates from :func:`candidate_lists`.
        ranks: Its rank by each score, 0 if no gold is in the knowledge base; without ranks, golds are omitted.
        nil_probability: Probability that none of the scored entities is the answer, in a calibrated run.
    """
    record: dict[str, Any] = {"id": mention.id, "mention": mention.mention, "sentence": mention.sentence}
    if ranks is not None:
        record["golds"] = [{"qid": qid, "name": _name(qid, entities)} for qid in mention.golds]
        record["rank"] = {name: rank or None for name, rank in ranks.items()}
    if nil_probability is not None:
        record["nil_probability"] = round(nil_probability, 6)
    return {**record, "candidates": candidates}


def candidate_lists(
    ranking: Ranking, entities: Sequence[Entity], top_k: int, calibration: Calibration | None = None
) -> list[list[dict[str, Any]]]:
    """The top candidates of each mention of a ranking, best first, as dictionaries.

    Args:
        ranking: Ranking of a batch of mentions.
        entities: The knowledge base.
        top_k: Candidates per mention.
        calibration: Adds their probabilities.

    Returns:
        For each mention its candidates: ``{"qid": ..., "name": ..., "scores": {"overall": ..., "text": ..., ...}}``,
        with a calibration also ``"probability"``.
    """
    probabilities = None if calibration is None else calibration(ranking.top_scores["overall"])[0].tolist()
    positions = ranking.top_entities[:, :top_k].tolist()
    scores = {name: block[:, :top_k].tolist() for name, block in ranking.top_scores.items()}
    return [
        [
            {
                "qid": entity.id,
                "name": entity.name,
                "scores": {name: round(block[row][column], 6) for name, block in scores.items()},
                **({} if probabilities is None else {"probability": round(probabilities[row][column], 6)}),
            }
            for column, entity in enumerate(entities[position] for position in line)
        ]
        for row, line in enumerate(positions)
    ]


def _relative(checkpoint: str | Path | None, folder: Path) -> str | None:
    """Path of the evaluated checkpoint; from the run's folder if it is in there, since that may be moved."""
    if not checkpoint:
        return None
    path, folder = Path(checkpoint).resolve(), folder.resolve()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _name(qid: str, entities: EntityTable) -> str | None:
    """An entity's name, if it is in the knowledge base."""
    position = entities.positions.get(qid)
    return None if position is None else entities[position].name


def _part_path(folder: Path, name: str, rank: int) -> Path:
    return folder / f".{name}.part{rank}"


def _merge(parts: list[Path], target: Path) -> None:
    """Merge the parts of all processes in the order of the mentions, without duplicates."""
    missing = [path for path in parts if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{missing[0]} was written by another machine and is not visible here. Evaluate on one machine, or set "
            "--trainer.default_root_dir to a shared file system."
        )
    places: dict[int, tuple[int, int]] = {}  # index of a mention -> part, offset of its line
    files = [path.open("rb") for path in parts]
    try:
        for number, file in enumerate(files):
            offset = 0
            for line in file:
                places.setdefault(int(line.partition(b"\t")[0]), (number, offset))
                offset += len(line)
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("wb") as merged:
            for index in sorted(places):
                number, offset = places[index]
                files[number].seek(offset)
                merged.write(files[number].readline().partition(b"\t")[2])
            merged.flush()
            os.fsync(merged.fileno())
    finally:
        for file in files:
            file.close()
    temporary.replace(target)
    for path in parts:
        path.unlink()
