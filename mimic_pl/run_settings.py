"""Settings of a configuration that define an experiment, or a training; the others are paths, logging and speed."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import mimic_pl
from mimic_pl.construction import MODEL_DEFAULTS, class_of
from mimic_pl.errors import ConfigError

_RELEVANT = ("model", "data", "trainer", "early_stopping", "checkpoint")
"""Sections of a configuration that affect the tested checkpoint; the others only log."""

_IRRELEVANT = {
    "trainer": {
        "accelerator", "benchmark", "default_root_dir", "detect_anomaly", "deterministic", "enable_autolog_hparams",
        "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "inference_mode",
        "limit_predict_batches", "log_every_n_steps", "logger", "model_registry", "num_sanity_val_steps", "profiler",
    },
    "data": {"entity_batch_size", "eval_batch_size", "num_workers", "image_cache", "predict_file", "seed"},
    "model": {
        "compile_encoder", "folder", "frozen_features", "gradient_checkpointing", "kernel", "ranker", "storage",
    },
    "early_stopping": {"log_rank_zero_only", "verbose"},
    "checkpoint": {
        "auto_insert_metric_name", "dirpath", "enable_version_counter", "filename", "save_last", "save_on_exception",
        "save_weights_only", "verbose",
    },
}  # fmt: skip
"""Keys at any depth of their section that do not define an experiment: seeds, paths, logging, speed."""


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a configuration that define an experiment, flat; one that is left out has its default."""
    config = {section: _completed(config.get(section), is_model=section == "model") for section in _RELEVANT}
    return {
        key: last_component(value, always=key.endswith(".root")) if isinstance(value, str) else value
        for section in _RELEVANT
        for key, value in _flat(config.get(section), section, _IRRELEVANT[section])
    }


def training_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How two configurations differ in what a training starts from: model, data and seeds.

    Unlike an experiment, a training has a seed and the data of one folder; the Trainer's settings, such as the number
    of epochs, may change when it is resumed.

    Returns:
        A phrase per difference: ``"data.init_args.root was a, and is b"``.
    """
    first, second = _training_settings(before), _training_settings(now)
    changed = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return [f"{key.replace('.init_args', '')} was {first.get(key)}, and is {second.get(key)}" for key in changed]


def _training_settings(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"seed_everything": config.get("seed_everything")}
    for section in ("model", "data"):
        completed = _completed(config.get(section), is_model=section == "model")
        found |= _flat(completed, section, _IRRELEVANT[section] - {"seed"})
    return {key: os.path.abspath(value) if key.endswith(".root") else value for key, value in found.items()}


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
        arguments |= {name: own for name, own in MODEL_DEFAULTS.items() if arguments.get(name) is None}
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


def _flat(value: Any, key: str, ignored: set[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            if name not in ignored:
                yield from _flat(child, f"{key}.{name}", ignored)
    elif isinstance(value, list) and any(isinstance(child, dict) for child in value):  # several data sets
        for number, child in enumerate(value):
            yield from _flat(child, f"{key}.{number}", ignored)
    elif value is not None:  # None is the default, and runs from before an option existed lack it
        yield key, value


def last_component(value: str, always: bool = False) -> str:
    """Last component of a path; hub names are returned whole."""
    if always or value.startswith(("/", "./", "../", "~")):
        return PurePosixPath(value.replace("\\", "/")).name or value
    return value
