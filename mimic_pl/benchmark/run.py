"""Running the benchmark: measures, prints and writes row by row."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mimic_pl.benchmark.report import Row, machine, print_machine, print_row
from mimic_pl.benchmark.settings import Settings
from mimic_pl.errors import ConfigError

_FUNCTIONS = {
    "ranking": ("ranking", "ranking"),
    "trained": ("ranking", "trained"),
    "bytes": ("sizes", "sizes"),
    "overhead": ("overhead", "overhead"),
    "memory": ("index", "memory"),
    "training": ("training", "training"),
    "encoding": ("encoding", "encoding"),
    "scaling": ("scaling", "scaling"),
    "images": ("images", "images"),
    "index": ("index", "index"),
    "candidates": ("candidates", "candidates"),
    "serving": ("serving", "serving"),
}
"""Module and function of each row."""


def run_benchmark(settings: Settings) -> dict[str, Any]:
    """Measure the selected rows and print each as soon as it is finished.

    Args:
        settings: Settings of the benchmark.

    Returns:
        All results as written to ``settings.output``: plain values by row, and the machine.

    Raises:
        ConfigError: The settings are invalid, or the output cannot be written.
    """
    selected = settings.selected()
    if settings.output is not None:
        _require_folder(Path(settings.output))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    machine_info = machine(settings.device)
    print_machine(console, machine_info)
    measured: dict[str, Any] = {"machine": machine_info, "settings": dataclasses.asdict(settings), "rows": {}}
    for name in selected:
        start = time.perf_counter()
        row = _function(name)(settings)
        row["seconds"] = time.perf_counter() - start
        print_row(console, row)
        measured["rows"][name] = row
        if settings.output is not None:  # after each row, so that no results are lost
            Path(settings.output).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def _function(name: str) -> Callable[[Settings], Row]:
    # Lazy imports: some rows need transformers' processors, others only torch.
    file, function = _FUNCTIONS[name]
    measure: Callable[[Settings], Row] = getattr(import_module(f"mimic_pl.benchmark.{file}"), function)
    return measure


def _require_folder(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"The output {path} must be a file in an existing folder.")
