"""Peak memory of a work, measured in a fresh process."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mimic_pl.benchmark.fresh import fresh_processes
from mimic_pl.errors import ConfigError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

Preparing = Callable[..., Callable[[], Any]]
"""Imports, builds and warms up; what it returns is measured."""


class Peak(NamedTuple):
    """Memory of a work.

    Attributes:
        beyond: Bytes at the peak beyond those that were taken before the work began.
        before: Bytes that were taken before, in all of the process.
        result: What the work returned.
    """

    beyond: int
    before: int
    result: Any


def peak_memory(prepare: Preparing, device: str, threads: int | None, *arguments: Any) -> Peak:
    """Measure a work in a process of its own: resident memory, or on CUDA what torch has handed out.

    Pages of mapped files count as far as they are in the process's memory.

    Args:
        prepare: A function of a module, called with ``arguments`` in that process; the work that it returns is
            measured.
        device: Where the work computes.
        threads: Threads of torch.
        *arguments: What ``prepare`` gets; all of it must be picklable.

    Raises:
        ConfigError: The system does not tell.
    """
    if torch.device(device).type != "cuda" and not _STATUS.exists():
        raise ConfigError(
            "Peak memory is read from /proc/self/status, which this system does not have. Leave out the rows memory, "
            "training and index (--rows ranking,bytes,encoding,images)."
        )
    with ProcessPoolExecutor(1, mp_context=fresh_processes()) as process:
        return process.submit(_measure, prepare, device, threads, arguments).result()


def _measure(prepare: Preparing, device: str, threads: int | None, arguments: tuple[Any, ...]) -> Peak:
    if threads is not None:
        torch.set_num_threads(threads)
    work = prepare(*arguments)
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device) - before, before, result)
    _forget_peak()
    before = _resident("VmRSS")
    result = work()
    return Peak(max(0, _resident("VmHWM") - before), before, result)


def _forget_peak() -> None:
    """Let the kernel count the peak anew; where it does not, a peak of the preparation counts as well."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{_STATUS} has no {name}"
    return 1024 * int(found[1])
