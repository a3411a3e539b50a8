"""Which runs are one experiment: the same configuration but for seed, places and what is logged."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import mimic_pl
from mimic_pl.construction import class_of
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor
from mimic_pl.report.evaluated_run import EvaluatedRun
from mimic_pl.runs import RUNS

_ONE_OF_SEVERAL = re.compile(r"(version|seed)[_-]?\d+")

_COUNTED = ("model", "data", "trainer", "early_stopping", "checkpoint")
"""Parts of a configuration that decide what a run learns and which checkpoint is tested; the others only write."""

_BESIDE_THE_POINT = {
    "trainer": {
        "accelerator", "benchmark", "default_root_dir", "detect_anomaly", "deterministic", "enable_autolog_hparams",
        "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "inference_mode",
        "limit_predict_batches", "log_every_n_steps", "logger", "model_registry", "num_sanity_val_steps", "profiler",
    },
    "data": {"entity_batch_size", "eval_batch_size", "num_workers", "image_cache", "predict_file", "seed"},
    "model": {"compile_encoder", "folder", "gradient_checkpointing", "kernel", "place", "ranker"},
    "early_stopping": {"log_rank_zero_only", "verbose"},
    "checkpoint": {
        "auto_insert_metric_name", "dirpath", "enable_version_counter", "filename", "save_last", "save_on_exception",
        "save_weights_only", "verbose",
    },
}  # fmt: skip
"""Keys that leave the result the same, wherever they stand in their part: seeds, places, logging, speed."""

_UNLESS_CONFIGURED: dict[str, Any] = {
    "processor": {"class_path": "mimic_pl.Processor"},
    "units": {
        "text": {"class_path": "mimic_pl.TGLU"},
        "vision": {"class_path": "mimic_pl.VDLU"},
        "cross_modal": {"class_path": "mimic_pl.CMFU"},
    },
    "matcher": {"class_path": "mimic_pl.Matcher"},
    "losses": {"contrastive": {"class_path": "mimic_pl.UnitConsistentLoss"}},
    "index": {"class_path": "mimic_pl.IndexBuilder"},
}
"""What :class:`~mimic_pl.MIMIC` builds where its configuration names nothing."""


@dataclass(frozen=True)
class Experiment:
    """Runs of one configuration, with different seeds.

    Two runs are one experiment if their configurations agree but for the seed (``seed_everything``, the data's
    ``seed``), for places (of a path only the last part counts), and for settings of logging and speed, and if they were
    tested on as many mentions and entities. A setting that is left out has the default of its class. A baseline that is
    not trained has no settings but its name (``baseline`` in ``metrics.json``). Whatever is not known to be beside the
    point tells experiments apart.

    Attributes:
        name: The folder that the runs lie in (``no_gate`` of ``runs/no_gate/version_0``), or the one above it where
            that is ``lightning_logs`` or a seed's (``seed_43``); where several experiments would share it with the
            run's own name behind it, or a number.
        runs: At least one.
        settings: The configuration that they share, flat: ``{"model.init_args.encoder.class_path": ...}``.
    """

    name: str
    runs: list[EvaluatedRun]
    settings: dict[str, Any]

    @property
    def dataset(self) -> str:
        """Name of the data set: its class, or for a plain folder its name."""
        data = self.runs[0].config["data"]
        of_class = str(data.get("class_path", "MELDataModule")).rpartition(".")[2]
        init = data.get("init_args") or {}
        if of_class != "MELDataModule":
            return of_class
        return str(init.get("name") or PurePosixPath(str(init.get("root", of_class))).name)

    @property
    def published(self) -> PublishedStatistics | None:
        """What the paper says of the data set, if it does and its class can be found here."""
        module, _, name = str(self.runs[0].config["data"].get("class_path", "")).rpartition(".")
        try:
            found = getattr(getattr(import_module(module), name), "published", None)
        except (ImportError, AttributeError, ValueError):
            return None
        return found if isinstance(found, PublishedStatistics) else None

    @property
    def mention_text(self) -> str:
        """Template of the mentions' text."""
        found = _values_of(self.runs[0].config, "mention_template")
        return " / ".join(found) or Processor().mention_template.template

    @property
    def entity_text(self) -> str:
        """Template of the entities' text."""
        found = _values_of(self.runs[0].config, "entity_template")
        return " / ".join(found) or Processor().entity_template.template

    @property
    def encoder(self) -> str:
        """Where the encoder's weights came from: checkpoint, or checkpoints of text and vision."""
        model = (self.runs[0].config.get("model") or {}).get("init_args") or {}
        encoder = model.get("encoder") or {}
        init = encoder.get("init_args") or {}
        named = [_place(str(init[key])) for key in ("pretrained", "text", "vision") if isinstance(init.get(key), str)]
        name = str(encoder.get("class_path", "no encoder")).rpartition(".")[2]
        return " + ".join(named) if named else f"{name} from scratch" if encoder else name

    @property
    def seeds(self) -> list[str]:
        """Seeds of the runs."""
        return [run.seed for run in self.runs if run.seed is not None]

    def values(self, score: str, metric: str) -> list[float]:
        """A metric of a score, or of a part of the data (:attr:`EvaluatedRun.figures`), of each run that has it."""
        figures = [run.figures.get(score, {}) for run in self.runs]
        return [own[metric] for own in figures if metric in own]

    def mean(self, score: str, metric: str) -> float | None:
        """Mean of a metric over the runs."""
        values = self.values(score, metric)
        return float(np.mean(values)) if values else None

    def deviation(self, score: str, metric: str) -> float | None:
        """Standard deviation of a metric over the runs (n - 1 below the line); None for fewer than two."""
        values = self.values(score, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def group_runs(runs: Sequence[EvaluatedRun]) -> list[Experiment]:
    """Sort runs into experiments, in the order in which they come; a run that is given twice counts once."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in {run.folder: run for run in runs}.values():
        tested = [run.summary.get(name) for name in ("mentions", "entities", "baseline")]
        key = json.dumps([settings_of(run.config), *tested], sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    firsts = [members[0] for members in groups.values()]
    names = [first.summary.get("baseline") or _name(first.folder) for first in firsts]
    names = [
        name if names.count(name) == 1 else f"{name}/{first.folder.name}"
        for name, first in zip(names, firsts, strict=True)
    ]
    return [
        Experiment(name, members, settings_of(members[0].config))
        for name, members in zip(_distinct(names), groups.values(), strict=True)
    ]


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that tell experiments apart, flat; one that is left out has its default."""
    config = {part: _completed(config.get(part), is_model=part == "model") for part in _COUNTED}
    return {
        key: _place(value, always=key.endswith(".root")) if isinstance(value, str) else value
        for part in _COUNTED
        for key, value in _flat(config.get(part), part, _BESIDE_THE_POINT[part])
    }


def differences(first: Experiment, other: Experiment) -> list[tuple[str, str, str]]:
    """Settings in which two experiments differ: name, the first one's value, the other's."""
    keys = [*first.settings, *(key for key in other.settings if key not in first.settings)]
    pairs = ((key, first.settings.get(key), other.settings.get(key)) for key in keys)
    return [(key.replace(".init_args", ""), _shown(a), _shown(b)) for key, a, b in pairs if a != b]


def _completed(value: Any, is_model: bool = False) -> Any:
    """A part of a configuration with the defaults of the classes that it names, to any depth."""
    if isinstance(value, list):
        return [_completed(own) for own in value]
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("class_path"), str):
        return {name: _completed(own) for name, own in value.items()}
    arguments = dict(value.get("init_args") or {})
    if is_model:
        arguments |= {name: own for name, own in _UNLESS_CONFIGURED.items() if arguments.get(name) is None}
    path = value["class_path"]
    try:
        found = class_of({"class_path": path})
    except ConfigError:  # of another project, whose code is not run for a report, or a function
        found = None
    if found is not None:
        arguments = {**_defaults(found), **arguments}
        public = found.__name__ in mimic_pl.__all__ and getattr(mimic_pl, found.__name__) is found
        path = f"mimic_pl.{found.__name__}" if public else path  # several modules may name it
    completed = {**value, "class_path": path}
    return completed | ({"init_args": _completed(arguments)} if arguments else {})


def _defaults(of_class: type) -> dict[str, Any]:
    """Defaults of a class's arguments, if a YAML file can hold them; also of those that it hands on to its bases."""
    found: dict[str, Any] = {}
    for base in of_class.__mro__:
        if "__init__" not in base.__dict__:
            continue
        parameters = list(inspect.signature(base.__dict__["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            found.setdefault(parameter.name, parameter.default)
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    plain = ((name, list(own) if isinstance(own, tuple) else own) for name, own in found.items())
    return {name: own for name, own in plain if isinstance(own, (bool, int, float, str, list))}


def _flat(value: Any, key: str, left_out: set[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            if name not in left_out:
                yield from _flat(below, f"{key}.{name}", left_out)
    elif value is not None:  # what is not set is the default, and a new option's default changes nothing
        yield key, value


def _place(value: str, always: bool = False) -> str:
    """The last part of a path; names of checkpoints on the hub stay whole."""
    if always or value.startswith(("/", "./", "../", "~")):
        return PurePosixPath(value.replace("\\", "/")).name or value
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _values_of(config: Any, key: str) -> list[str]:
    """Values of a key wherever it stands in a configuration, each once."""
    found: dict[str, None] = {}
    if isinstance(config, dict):
        if isinstance(config.get(key), str):
            found[config[key]] = None
        for value in config.values():
            found |= dict.fromkeys(_values_of(value, key))
    elif isinstance(config, list):
        for value in config:
            found |= dict.fromkeys(_values_of(value, key))
    return list(found)


def _name(folder: Path) -> str:
    """The nearest folder above a run that tells more than which run, or which seed, it is."""
    telling = (
        above.name for above in folder.parents if above.name != RUNS and not _ONE_OF_SEVERAL.fullmatch(above.name)
    )
    return next(telling, "") or folder.name


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """The names, those that come more than once with a number behind them."""
    for place, name in enumerate(names):
        yield name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
