"""What a run's folder says about its model, for the model card."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from mimic_pl.bootstrap import interval, resampled_means
from mimic_pl.construction import class_of
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.evaluated_run import EvaluatedRun, open_finished
from mimic_pl.home import expanded
from mimic_pl.model_folder.model_card import METRICS, CardFacts, Interval
from mimic_pl.runs import Run

_TITLES = {
    "exact_name": "The entity of exactly this name, without training",
    "name_similarity": "Similarity of the names, without training",
    "bm25": "BM25, without training",
    "text_cosine": "Texts of the untrained encoder",
    "image_cosine": "Pictures of the untrained encoder",
    "both_cosines": "Texts and pictures of the untrained encoder",
}
"""Baselines of ``mimic-pl baselines`` in a card."""


def facts_of_run(
    run: Run,
    checkpoint: Path,
    name: str | None = None,
    license: str | None = None,
    baselines: str | Path | None = None,
    calibrated: bool = False,
) -> CardFacts:
    """Collect what is known of a run: data, results with intervals, baselines, duration.

    Args:
        run: The run. If it was not tested, or with another checkpoint, a warning is logged and there are no results.
        checkpoint: The checkpoint of the model.
        name: Name of the model; by default, after the data set.
        license: Licence of the weights.
        baselines: ``baselines.json`` of the same data.
        calibrated: Whether the model comes with a calibration.

    Raises:
        DataError: A file of the run is damaged, or the baselines are of other data.
    """
    tested = _tested(run, checkpoint)
    common: dict[str, Any] = {"license": license, "seconds": training_seconds(run.folder), "calibrated": calibrated}
    common |= {"trained_with": f"mimic-pl ({run.version})", "seed": _seed(run)}
    if tested is None:
        if baselines is not None:
            raise ConfigError(
                "Baselines are only shown beside the results of the model, and there are none. Test the run first: "
                f"mimic-pl test --run {run.folder}"
            )
        return CardFacts(name=name or "MIMIC", **common)
    dataset = _dataset(tested)
    return CardFacts(
        name=name or f"MIMIC trained on {dataset}",
        dataset=dataset,
        mentions=tested.summary["mentions"],
        entities=tested.summary["entities"],
        results={key: value for key, value in tested.metrics["overall"].items() if key in METRICS},
        intervals=_intervals(tested),
        baselines={} if baselines is None else _baselines(expanded(baselines), tested),
        published=_published(tested),
        epochs=" of ".join(str(number) for number in (tested.best_epoch, tested.trained_epochs) if number is not None)
        or None,
        **common,
    )


def training_seconds(folder: Path) -> float | None:
    """Seconds from the first to the last logged step of the training; ``None`` without TensorBoard's events."""
    if not any(folder.glob("events.out.tfevents.*")):
        return None
    # A lazy import, since tensorboard is slow to import.
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, "images": 1, "tensors": 1})
    try:
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train", "val"))]
        times = [event.wall_time for tag in tags for event in events.Scalars(tag)]
    except Exception as error:  # errors of protobuf and tensorboard have no common base class
        raise DataError(
            f"TensorBoard's events in {folder} cannot be read ({error!r:.200}). Delete events.out.tfevents.* there to "
            "leave the duration out."
        ) from error
    return max(times) - min(times) if times else None


def _tested(run: Run, checkpoint: Path) -> EvaluatedRun | None:
    """The run's results, if they are those of the checkpoint."""
    if not (run.folder / "metrics.json").is_file():
        rank_zero_warn(
            f"The model card has no results, since {run.folder} was not tested. Test it, and export it again: mimic-pl "
            f"test --run {run.folder}"
        )
        return None
    tested = open_finished(run.folder)
    named = tested.summary.get("checkpoint")
    if named is None or (run.folder / named).resolve() != checkpoint.resolve():
        rank_zero_warn(
            f"The model card has no results, since metrics.json is of {named}, not of {checkpoint.name}. Test this "
            f"checkpoint, and export it again: mimic-pl test --run {run.folder} --ckpt_path {checkpoint}"
        )
        return None
    return tested


def _intervals(tested: EvaluatedRun) -> dict[str, Interval]:
    """95 % intervals over mentions of H@k and MRR; none without predictions.jsonl."""
    if not (tested.folder / "predictions.jsonl").is_file():
        return {}
    ranks = tested.predictions.ranks["overall"]
    found = [key for key in METRICS if key.startswith("hits@")]
    values = [((ranks > 0) & (ranks <= int(key.partition("@")[2]))).astype(float) for key in found]
    drawn = resampled_means(np.stack([*values, tested.predictions.reciprocal_ranks]))
    return {key: Interval(*interval(means)) for key, means in zip([*found, "mrr"], drawn, strict=True)}


def _baselines(path: Path, tested: EvaluatedRun) -> dict[str, dict[str, float]]:
    """Metrics of baselines by their titles.

    Raises:
        DataError: The file is damaged, or of other data.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {
            _TITLES.get(name, name): {key: _number(own[key]) for key in METRICS if key in own}
            for name, own in content["baselines"].items()
        }
        size = content["mentions"], content["entities"], content["split"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is not what mimic-pl baselines writes ({error!r:.100}). Give the baselines.json of its output "
            "folder."
        ) from error
    own = tested.summary["mentions"], tested.summary["entities"], "test"
    if size != own:
        raise DataError(
            f"{path} is of {size[0]} {size[2]} mentions and {size[1]} entities, but the run was tested on {own[0]} "
            f"mentions and {own[1]} entities: they cannot be compared. Run mimic-pl baselines on the run's data."
        )
    return found


def _published(tested: EvaluatedRun) -> dict[str, float]:
    """Published results on the data set, if it is one of this package."""
    try:
        published = getattr(class_of({"class_path": str(tested.config["data"].get("class_path"))}), "published", None)
    except ConfigError:
        return {}
    if not isinstance(published, PublishedStatistics) or tested.summary["mentions"] != published.mentions["test"]:
        return {}  # of a part of the data, figures are not comparable
    return published.test


def _dataset(tested: EvaluatedRun) -> str:
    """Name of the data set: its class, or what its configuration or folder is called if that is the general one."""
    named = str(tested.summary.get("data") or "")
    arguments = tested.config["data"].get("init_args") or {}
    if named not in ("", "MELDataModule"):
        return named
    return str(arguments.get("name") or Path(str(arguments.get("root") or "a data set without a name")).name)


def _seed(run: Run) -> str | None:
    seed = run.read_config().get("seed_everything")
    return str(seed) if re.fullmatch(r"\d+", str(seed)) else None


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a finite number")
    return float(value)
