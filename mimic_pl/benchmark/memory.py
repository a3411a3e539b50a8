"""Peak memory of a function, measured in a fresh process."""

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
"""Imports, builds and warms up, and returns the function to measure."""


class Peak(NamedTuple):
    """Peak memory of a function.

    Attributes:
        increase: Peak bytes minus ``before``.
        before: Bytes used by the process before the function was called.
        result: Return value of the function.
    """

    increase: int
    before: int
    result: Any


def peak_memory(prepare: Preparing, device: str, threads: int | None, *arguments: Any) -> Peak:
    """Measure peak memory in a separate process: resident memory, or on CUDA the memory allocated by torch.

    Resident pages of mapped files are included.

    Args:
        prepare: A module-level function, called with ``arguments`` in that process; the function that it returns is
            measured.
        device: Device on which the function computes.
        threads: Number of torch threads.
        *arguments: Picklable arguments of ``prepare``.

    Raises:
        ConfigError: The system does not report peak memory.
    """
    if torch.device(device).type != "cuda" and not _STATUS.exists():
        raise ConfigError(
            "Peak memory is read from /proc/self/status, which this system does not have. Omit the rows memory, "
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
    _reset_peak()
    before = _resident("VmRSS")
    result = work()
    return Peak(max(0, _resident("VmHWM") - before), before, result)


def _reset_peak() -> None:
    """Reset the kernel's peak; where that is not permitted, the peak of the preparation is included."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def _resident(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None, f"{_STATUS} has no {name}"
    return 1024 * int(match[1])
