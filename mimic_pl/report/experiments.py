"""Experiments: runs whose configurations differ only in seed, paths, logging and speed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mimic_pl.construction import class_of
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.errors import ConfigError
from mimic_pl.evaluated_run import EvaluatedRun
from mimic_pl.processor import Processor
from mimic_pl.run_settings import last_component, settings_of
from mimic_pl.runs import RUNS

_NUMBERED = re.compile(r"(version|seed)[_-]?\d+")


@dataclass(frozen=True)
class Experiment:
    """Runs of one configuration with different seeds.

    Two runs belong to the same experiment if their configurations differ only in the seed (``seed_everything``, the
    data's ``seed``), in paths (only the last component is compared), and in settings of logging and speed, and if they
    were tested on the same number of mentions and entities. A setting that is left out has the default of its class. A
    baseline that is not trained is identified by its name (``baseline`` in ``metrics.json``). Any unknown setting
    distinguishes experiments.

    Attributes:
        name: Name of the folder that contains the runs (``no_gate`` for ``runs/no_gate/version_0``), or of its parent
            if that is ``lightning_logs`` or a seed (``seed_43``); the name of the run or a number is appended if
            several experiments would have the same name.
        runs: At least one run.
        settings: Their common configuration, flat: ``{"model.init_args.encoder.class_path": ...}``.
    """

    name: str
    runs: list[EvaluatedRun]
    settings: dict[str, Any]

    @property
    def dataset(self) -> str:
        """Name of the data set: its class, or the name of the folder for :class:`MELDataModule`."""
        data = self.runs[0].config["data"]
        of_class = str(data.get("class_path", "MELDataModule")).rpartition(".")[2]
        init = data.get("init_args") or {}
        if of_class != "MELDataModule":
            return of_class
        return str(init.get("name") or PurePosixPath(str(init.get("root", of_class))).name)

    @property
    def published(self) -> PublishedStatistics | None:
        """Published statistics of the data set, if it is one of this package."""
        try:
            found = class_of({"class_path": str(self.runs[0].config["data"].get("class_path", ""))})
        except ConfigError:
            return None
        published = getattr(found, "published", None)
        return published if isinstance(published, PublishedStatistics) else None

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
        """Source of the encoder's weights: a checkpoint, or checkpoints of text and vision."""
        model = (self.runs[0].config.get("model") or {}).get("init_args") or {}
        encoder = model.get("encoder") or {}
        init = encoder.get("init_args") or {}
        named = [
            last_component(str(init[key])) for key in ("pretrained", "text", "vision") if isinstance(init.get(key), str)
        ]
        name = str(encoder.get("class_path", "no encoder")).rpartition(".")[2]
        return " + ".join(named) if named else f"{name} from scratch" if encoder else name

    @property
    def seeds(self) -> list[str]:
        """Seeds of the runs."""
        return [run.seed for run in self.runs if run.seed is not None]

    def values(self, score: str, metric: str) -> list[float]:
        """Values of a metric of a score or subset (:attr:`EvaluatedRun.figures`), from each run that has it."""
        figures = [run.figures.get(score, {}) for run in self.runs]
        return [own[metric] for own in figures if metric in own]

    def mean(self, score: str, metric: str) -> float | None:
        """Mean of a metric over the runs."""
        values = self.values(score, metric)
        return float(np.mean(values)) if values else None

    def deviation(self, score: str, metric: str) -> float | None:
        """Sample standard deviation (n - 1) of a metric over the runs; None for fewer than two."""
        values = self.values(score, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def group_runs(runs: Sequence[EvaluatedRun]) -> list[Experiment]:
    """Group runs into experiments, in the given order; duplicates are dropped."""
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


def differences(first: Experiment, other: Experiment) -> list[tuple[str, str, str]]:
    """Settings in which two experiments differ: name, value in the first, value in the other."""
    keys = [*first.settings, *(key for key in other.settings if key not in first.settings)]
    pairs = ((key, first.settings.get(key), other.settings.get(key)) for key in keys)
    return [(key.replace(".init_args", ""), _shown(a), _shown(b)) for key, a, b in pairs if a != b]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _values_of(config: Any, key: str) -> list[str]:
    """Distinct values of a key at any depth of a configuration."""
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
    """Name of the nearest parent folder of a run that is not just a version or seed."""
    parents = (parent.name for parent in folder.parents)
    return next((name for name in parents if name != RUNS and not _NUMBERED.fullmatch(name)), "") or folder.name


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """Append numbers to repeated names."""
    for index, name in enumerate(names):
        yield name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
