"""A finished run, read from its folder without loading the model."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_pl.callbacks.predictions import partial_path
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.files import sha256_of
from mimic_pl.home import expanded
from mimic_pl.yaml_file import read_yaml

Record = dict[str, Any]
"""A line of ``predictions.jsonl``."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a run for the test mentions, in their order.

    Attributes:
        ids: Ids of the mentions.
        golds: Golds of the mentions by ``qid``.
        ranks: Rank of the best-ranked gold by score name, int64 ``[mentions]``; 0 if no gold is in the knowledge base.
        top: Overall scores of the stored candidates, best first, float64 ``[mentions, candidates]``; padded with -inf.
    """

    ids: list[str]
    golds: list[tuple[str, ...]]
    ranks: dict[str, NDArray[np.int64]]
    top: NDArray[np.float64]

    @property
    def hits(self) -> NDArray[np.float64]:
        """H@1 of each mention by the overall score, 0 or 1, ``[mentions]``."""
        return (self.ranks["overall"] == 1).astype(np.float64)

    @property
    def reciprocal_ranks(self) -> NDArray[np.float64]:
        """1 / rank of each mention by the overall score, ``[mentions]``; 0 if no gold is in the knowledge base."""
        ranks = self.ranks["overall"]
        return np.divide(1.0, ranks, out=np.zeros(len(ranks)), where=ranks > 0)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's folder after ``fit`` and ``test``.

    Attributes:
        folder: Absolute path of the folder.
        config: Content of ``config.yaml``.
        summary: Content of ``metrics.json``.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Test metrics by score: fractions between 0 and 1, and the mean rank."""
        found: dict[str, dict[str, float]] = self.summary["metrics"]
        return found

    @property
    def seed(self) -> str | None:
        """Value of ``seed_everything``; None for baselines that are not trained."""
        seed = self.config.get("seed_everything")
        return None if seed is None else str(seed)

    @property
    def best_epoch(self) -> int | None:
        """Number of epochs after which the tested checkpoint was written, if its name contains it."""
        found = re.search(r"epoch=(\d+)", Path(self.summary.get("checkpoint") or "").name)
        return int(found.group(1)) + 1 if found else None

    @property
    def trained_epochs(self) -> int | None:
        """Number of epochs trained, up to the last validation; the configured number if validation was not logged."""
        if self.curve:
            return self.curve[-1][0]
        configured = (self.config.get("trainer") or {}).get("max_epochs")
        return int(configured) if self.summary.get("checkpoint") and configured is not None else None

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Validation MRR by number of epochs trained, from TensorBoard's events or ``metrics.csv``; empty without."""
        return self._validation["mrr"]

    @property
    def hits_curves(self) -> dict[str, list[tuple[int, float]]]:
        """Validation H@1 of the overall score and of each unit, by number of epochs trained; empty without."""
        units = {name: self._validation[f"{name}/hits@1"] for name in self.metrics if name != "overall"}
        return {name: curve for name, curve in {"overall": self._validation["hits@1"], **units}.items() if curve}

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """All results: test metrics by score and by subset of the data.

        The subsets are ``seen`` and ``unseen``, test mentions with golds seen and unseen in training (if ``test``
        reported them), and ``dev``, H@1 and MRR of the validation split at the tested checkpoint (if TensorBoard's
        events contain them).
        """
        subsets = {name: subset["metrics"] for name, subset in self.summary.get("subsets", {}).items()}
        at_best = {name: dict(self._validation[name]).get(self.best_epoch or 0) for name in ("hits@1", "mrr")}
        dev = {name: value for name, value in at_best.items() if value is not None}
        return {**subsets, "dev": dev, **self.metrics}

    @property
    def held_out_curves(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Curves of a calibrated run by kind of confidence, of mentions with and without their golds; else empty.

        ``reliability`` has rows of mean confidence, accuracy and share of the answers in a bin, ``risk_coverage`` rows
        of coverage and risk.
        """
        stored = self.summary.get("calibration", {}).get("curves", {})
        return {kind: {name: np.array(rows) for name, rows in own.items()} for kind, own in stored.items()}

    @cached_property
    def _validation(self) -> dict[str, list[tuple[int, float]]]:
        units = [f"{name}/hits@1" for name in self.metrics if name != "overall"]
        return read_curves(self.folder, {name: f"val/{name}" for name in ("hits@1", "mrr", *units)})

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions for the test mentions.

        Raises:
            ConfigError: There is no ``predictions.jsonl``.
            DataError: A line of it is malformed.
        """
        return read_predictions(self.folder)

    @cached_property
    def robustness(self) -> list[dict[str, Any]]:
        """Records of ``robustness.json``; empty without the file.

        Raises:
            DataError: The file is damaged.
        """
        path = self.folder / "robustness.json"
        if not path.is_file():
            return []
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
            for record in records:
                float(record["strength"]), record["kind"], record["side"], record["metrics"]["overall"]["hits@1"]
                for metrics in record["metrics"].values():
                    for value in metrics.values():
                        _require_number(value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{path} is not a list of records with kind, side, strength and metrics by score ({error!r}). Run "
                "mimic-pl robustness again, or delete the file."
            ) from error
        found: list[dict[str, Any]] = records
        return found


def open_finished(folder: str | Path) -> EvaluatedRun:
    """Open the folder of a tested run; its checkpoints may have been deleted.

    Raises:
        ConfigError: The folder is not a run, or the run was not tested.
        DataError: A file of the run is damaged.
    """
    path = expanded(folder).resolve()
    if not (path / "config.yaml").is_file():
        below = sorted(config.parent for config in path.glob("*/config.yaml")) if path.is_dir() else []
        hint = f" Did you mean {', '.join(map(str, below[:3]))}?" if below else ""
        raise ConfigError(
            f"{path} is not a run: it has no config.yaml. Give a folder written by 'mimic-pl fit', such as "
            f"lightning_logs/version_0.{hint}"
        )
    if not (path / "metrics.json").is_file():
        part = partial_path(path / "metrics.json").is_file()
        what = "tested on only some of the mentions" if part else "not tested"
        raise ConfigError(f"The run {path} was {what}. Test it first: mimic-pl test --run {path}")
    config = read_yaml(path / "config.yaml")
    if not isinstance(config.get("data"), dict):
        raise DataError(f"{path / 'config.yaml'} is not the configuration of a run: it has no 'data'.")
    try:
        summary = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        _require_summary(summary)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path / 'metrics.json'} cannot be read ({error!r}). Test the run again: mimic-pl test --run {path}"
        ) from error
    predictions, stated = path / "predictions.jsonl", summary.get("predictions_sha256")
    if stated is not None and predictions.is_file() and sha256_of(predictions) != stated:
        raise DataError(
            f"{predictions} and metrics.json are of different evaluations: one was interrupted, or a file was changed. "
            f"Test the run again: mimic-pl test --run {path}"
        )
    return EvaluatedRun(path, config, summary)


def read_records(folder: Path) -> Iterator[Record]:
    """Read the lines of a run's ``predictions.jsonl``.

    Raises:
        ConfigError: The file does not exist.
        DataError: A line is malformed.
    """
    path = folder / "predictions.jsonl"
    if not path.is_file():
        raise ConfigError(f"The run {folder} has no predictions.jsonl. Test it again: mimic-pl test --run {folder}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                _require_prediction(record)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: not a prediction ({error!r}). Test the run again: "
                    f"mimic-pl test --run {folder}"
                ) from error
            yield record


def _require_prediction(record: Any) -> None:
    """Raise a built-in error if a line does not have the format that ``test`` writes."""
    record["id"], record["rank"]["overall"]
    for rank in record["rank"].values():
        if rank is not None and (type(rank) is not int or not 0 < rank < 2**62):
            raise ValueError(f"invalid rank {rank!r:.40}")
    for gold in record["golds"]:
        if not isinstance(gold["qid"], str):
            raise ValueError(f"invalid gold {gold['qid']!r:.40}")
    for candidate in record["candidates"]:
        for score in candidate["scores"].values():
            _require_number(score)
        candidate["scores"]["overall"], candidate["qid"], candidate["name"]


def _require_summary(summary: Any) -> None:
    """Raise a built-in error if ``metrics.json`` does not have the format that ``test`` writes."""
    summary["metrics"]["overall"]["hits@1"]
    for metrics in summary["metrics"].values():
        for value in metrics.values():
            _require_number(value)
    calibration = summary.get("calibration", {})
    for cases in ("given", "held_out"):
        for kind, metrics in calibration.get(cases, {}).items():
            for name in ("nil_mentions", *metrics):
                _require_number(metrics[name])
            if kind not in ("softmax", "calibrated"):
                raise ValueError(f"an unknown kind of confidence {kind!r:.40}")
    for curves in calibration.get("curves", {}).values():
        for name, width in (("reliability", 3), ("risk_coverage", 2)):
            for row in curves[name]:
                if len(row) != width:
                    raise ValueError(f"a point of {name} is {row!r:.40}")
                for value in row:
                    _require_number(value)
    for name in ("mentions", "entities"):
        if type(summary[name]) is not int:
            raise ValueError(f"{name} is {summary[name]!r:.40}")
    checkpoint = summary.get("checkpoint")
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise ValueError(f"the checkpoint is {checkpoint!r:.40}")


def _require_number(value: Any) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a finite number")


def read_predictions(folder: Path) -> Predictions:
    """Read a run's ``predictions.jsonl``; see :func:`read_records`."""
    ids, golds, tops = [], [], []
    ranks: dict[str, list[int]] = {}
    for record in read_records(folder):
        ids.append(str(record["id"]))
        golds.append(tuple(gold["qid"] for gold in record["golds"]))
        tops.append([candidate["scores"]["overall"] for candidate in record["candidates"]])
        for name, rank in record["rank"].items():
            ranks.setdefault(name, []).append(rank or 0)
    if any(len(column) != len(ids) for column in ranks.values()):
        raise DataError(
            f"The lines of {folder / 'predictions.jsonl'} have ranks by different scores. Test the run again: "
            f"mimic-pl test --run {folder}"
        )
    if not ids:
        raise DataError(f"{folder / 'predictions.jsonl'} is empty. Test the run again: mimic-pl test --run {folder}")
    top = np.full((len(ids), max(map(len, tops))), -np.inf)
    for row, scores in enumerate(tops):
        top[row, : len(scores)] = scores
    return Predictions(ids, golds, {name: np.array(column) for name, column in ranks.items()}, top)


def read_curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read a scalar of a run's TensorBoard events by number of epochs trained, in order."""
    return read_curves(folder, {tag: tag})[tag]


def read_curves(folder: Path, tags: dict[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Read several scalars at once, with tags by name; missing ones are empty.

    They are in TensorBoard's events, or else in the ``metrics.csv`` of a CSVLogger.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return _curves_in_csv(folder / "metrics.csv", tags)
    # A lazy import, since tensorboard is slow to import.
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    # All scalars, but no images (0 would mean all).
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, "images": 1, "tensors": 1})
    try:
        events.Reload()
    except Exception as error:  # errors of protobuf and tensorboard have no common base class
        raise DataError(
            f"TensorBoard's events in {folder} cannot be read ({error!r:.200}). Delete events.out.tfevents.* there to "
            "omit the curves."
        ) from error
    logged = set(events.Tags()["scalars"])
    epochs = {event.step: int(event.value) + 1 for event in events.Scalars("epoch")} if "epoch" in logged else {}
    curves = {}
    for name, tag in tags.items():
        values = events.Scalars(tag) if tag in logged else []
        # A resumed run may have logged an epoch twice: the later value wins.
        curves[name] = sorted({epochs[event.step]: event.value for event in values if event.step in epochs}.items())
    return curves


def _curves_in_csv(path: Path, tags: dict[str, str]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, dict[int, float]] = {name: {} for name in tags}
    try:
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    for name, tag in tags.items():
                        if row.get(tag) and row.get("epoch"):
                            curves[name][int(row["epoch"]) + 1] = float(row[tag])
        return {name: sorted(curve.items()) for name, curve in curves.items()}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error!r:.200}). Delete it to omit the curves.") from error
