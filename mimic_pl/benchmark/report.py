"""Results of the benchmark as plain dictionaries and as printed tables."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mimic_pl.benchmark.timing import Timing, ratio

Row = dict[str, Any]
"""A group of measurements: ``title``, ``setting``, ``lines``, and ``checks`` of correctness.

Comparisons of several quantities also have a ``table``: a list of dictionaries with the same keys.
"""

Line = dict[str, Any]
"""A measurement: ``what``, ``value``, ``unit``; in comparisons also ``against``, ``other``, ``ratio`` other / value."""


def timed(what: str, ours: Timing, against: str, other: Timing, of: str) -> Line:
    """Compare seconds per item; the ratio is the speedup, with its range over single rounds."""
    return {
        "what": what,
        "value": ours.median,
        "unit": "s",
        "per": of,
        "against": against,
        "other": other.median,
        **ratio(other, ours)._asdict(),
    }


def sized(what: str, ours: float, against: str, other: float, per: str | None = None) -> Line:
    """Compare bytes."""
    line = {"what": what, "value": ours, "unit": "B", "against": against, "other": other, "ratio": other / max(ours, 1)}
    return line if per is None else {**line, "per": per}


def fact(what: str, value: float, unit: str, per: str | None = None) -> Line:
    """A single value in ``s``, ``B``, ``%`` or without a unit."""
    line = {"what": what, "value": value, "unit": unit}
    return line if per is None else {**line, "per": per}


def machine(device: str) -> dict[str, Any]:
    """Description of the machine."""
    description = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }
    if torch.device(device).type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
    return description


def print_machine(console: Console, description: dict[str, Any]) -> None:
    """Print the description of the machine."""
    console.print(", ".join(f"{name} {value}" for name, value in description.items()), highlight=False)


def print_row(console: Console, row: Row) -> None:
    """Print a group of measurements as a table."""
    setting = ", ".join(f"{name} {value}" for name, value in row["setting"].items())
    title = row["title"]
    if "table" in row:
        console.print(_compared(row["table"], title))
        title = None
    table = Table(title=title, caption=setting, title_justify="left", caption_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("against", overflow="fold")
    table.add_column("reference", justify="right")
    table.add_column("ratio", justify="right")
    for line in row["lines"]:
        unit, per = line["unit"], line.get("per")
        against = [line["against"], _readable(line["other"], unit, per)] if "against" in line else ["", ""]
        table.add_row(line["what"], _readable(line["value"], unit, per), *against, _ratio(line))
    console.print(table)
    for name, value in row.get("checks", {}).items():
        console.print(f"  {name}: {value}", highlight=False)


def _compared(rows: list[dict[str, Any]], title: str) -> Table:
    """Table of several quantities, with names in the first column."""
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else _figure(value) for value in row.values()))
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _ratio(line: Line) -> str:
    if "ratio" not in line:
        return ""
    if "lowest" not in line:
        return f"{line['ratio']:.2f} x"
    return f"{line['ratio']:.2f} x ({line['lowest']:.2f} to {line['highest']:.2f})"


def _readable(value: float, unit: str, per: str | None) -> str:
    ending = "" if per is None else f" / {per}"
    if unit == "s":
        for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
            if value >= size:
                return f"{value / size:.3g} {name}{ending}"
        return f"{value * 1e12:.3g} ps{ending}"
    if unit == "B":
        for size, name in ((1e9, "GB"), (1e6, "MB")):
            if value >= size:
                return f"{value / size:.2f} {name}{ending}"
        return f"{value:,.0f} B{ending}"
    return f"{value:,.4g}{unit and ' '}{unit}{ending}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
