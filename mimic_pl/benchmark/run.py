"""Row by row: measure, print, write."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mimic_pl.benchmark.report import Row, machine, print_machine, print_row
from mimic_pl.benchmark.settings import ROWS, Settings
from mimic_pl.errors import ConfigError

_ROOMS = {**{row: row for row in ROWS}, "trained": "ranking", "bytes": "sizes"}


def run_benchmark(settings: Settings) -> dict[str, Any]:
    """Measure the chosen rows and print each as soon as it is there.

    Args:
        settings: What is measured, at which sizes and where.

    Returns:
        All that was measured, as it is written to ``settings.output``: plain values by row, and the machine.

    Raises:
        ConfigError: The settings do not fit, or the output can not be written.
    """
    chosen = settings.chosen()
    if settings.output is not None:
        _require_folder(Path(settings.output))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    console = Console()
    found = machine(settings.device)
    print_machine(console, found)
    measured: dict[str, Any] = {"machine": found, "settings": dataclasses.asdict(settings), "rows": {}}
    for name in chosen:
        start = time.perf_counter()
        row = _function(name)(settings)
        row["seconds"] = time.perf_counter() - start
        print_row(console, row)
        measured["rows"][name] = row
        if settings.output is not None:  # after each row: what was measured is not lost
            Path(settings.output).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def _function(name: str) -> Callable[[Settings], Row]:
    # Imported when it is measured: some rows need transformers' processors, others nothing but torch.
    function: Callable[[Settings], Row] = getattr(import_module(f"mimic_pl.benchmark.{_ROOMS[name]}"), _function_name(name))
    return function


def _function_name(name: str) -> str:
    return {"bytes": "sizes"}.get(name, name)


def _require_folder(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"The output {path} must be a file in a folder that exists.")
