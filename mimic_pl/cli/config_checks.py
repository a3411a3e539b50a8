"""Checks a parsed configuration before anything is built: an encoder may take minutes to load."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from jsonargparse import Namespace

from mimic_pl.callbacks import FailureMonitor, PredictionWriter, SamplePanels
from mimic_pl.construction import class_of
from mimic_pl.data.degradation import Degradation
from mimic_pl.data.folder import MIMICFolder
from mimic_pl.errors import ConfigError
from mimic_pl.ranges import COUNT, NATURAL, NOT_NEGATIVE, SEED, Allowed, Range, ranges_of, require_ranges

_SECTIONS: dict[str, Mapping[str, Allowed]] = {
    "predictions": ranges_of(PredictionWriter),
    "panels": ranges_of(SamplePanels),
    "monitor": ranges_of(FailureMonitor),
    # Lightning does not check these: it divides by zero, or never stops.
    "early_stopping": {"patience": NATURAL, "min_delta": Range(whole=False)},
    "trainer": {
        "accumulate_grad_batches": COUNT,
        "check_val_every_n_epoch": COUNT,
        "log_every_n_steps": NATURAL,
        "gradient_clip_val": NOT_NEGATIVE,
    },
}
"""Ranges of sections that are arguments without a class path."""


def check_config(config: Namespace) -> None:
    """Check numbers, and that the data folders exist.

    Numbers are those of this package's classes, of the optimizer and its scheduler, and some of Lightning's.

    Raises:
        ConfigError: A number is out of range, or a data folder does not exist.
    """
    sections = config.as_dict()
    for name, ranges in _SECTIONS.items():
        require_ranges(ranges, sections.get(name) or {}, f"{name}.")
    seed = sections.get("seed_everything")
    if not isinstance(seed, bool):  # true: a random one
        require_ranges({"seed_everything": SEED}, {"seed_everything": seed}, "")
    for path, of_class, arguments in _objects(sections, ""):
        require_ranges(ranges_of(of_class), arguments, f"{path}.")
        if issubclass(of_class, Degradation):
            of_class(**arguments)  # its range depends on the kind
        elif issubclass(of_class, MIMICFolder) and "root" in arguments:
            of_class.check_root(arguments["root"])
        elif path == "model":
            _check_optimizer(arguments.get("optimizer"), arguments.get("lr_scheduler"))


def _objects(value: Any, path: str) -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Every described object of a configuration: its key, class and arguments."""
    if isinstance(value, Mapping):
        described = isinstance(value.get("class_path"), str)
        below = (value.get("init_args") or {}) if described else value
        if described:
            with suppress(ConfigError):  # a function
                yield path, class_of({"class_path": value["class_path"]}, trust_remote_code=True), below
        for name, own in below.items():
            yield from _objects(own, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for index, own in enumerate(value):
            yield from _objects(own, f"{path}.{index}")


def _check_optimizer(optimizer: Any, scheduler: Any) -> None:
    """Build torch's optimizer and scheduler for one parameter: torch itself knows which numbers they take."""
    built: Any = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for name, described in (("optimizer", optimizer), ("lr_scheduler", scheduler)):
        path = described.get("class_path") if isinstance(described, Mapping) else None
        if not isinstance(path, str) or not path.startswith("torch.optim."):
            continue
        arguments = dict(described.get("init_args") or {})
        endless = [key for key, own in arguments.items() if isinstance(own, float) and not math.isfinite(own)]
        if endless:
            raise ConfigError(f"model.{name}.{endless[0]} is {arguments[endless[0]]}; it must be a finite number.")
        first = built if name == "lr_scheduler" else [torch.nn.Parameter(torch.zeros(1))]
        try:
            built = class_of({"class_path": path})(first, **arguments)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ConfigError(f"model.{name}: {path} cannot be built: {str(error).rstrip('.')}.") from error
        except RuntimeError:
            return  # it needs another device
