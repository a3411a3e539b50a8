"""Comparable times, from repeated interleaved measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Work(NamedTuple):
    """A function to time.

    Attributes:
        run: The function.
        items: Number of items that it processes (pairs, images, ...); times are per item.
    """

    run: Callable[[], object]
    items: int = 1


class Timing(NamedTuple):
    """Seconds per item of each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """Median over rounds."""
        return statistics.median(self.rounds)


class Ratio(NamedTuple):
    """Ratio of two times.

    Attributes:
        ratio: Ratio of the medians.
        lowest: Lowest ratio of a single round.
        highest: Highest ratio of a single round.
    """

    ratio: float
    lowest: float
    highest: float


def time_interleaved(
    works: Mapping[str, Work], rounds: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, Timing]:
    """Time works one after the other in each round, so that changes of the machine's speed affect all of them.

    Args:
        works: Works by name.
        rounds: Number of repetitions.
        device: Device on which they compute, which is synchronized.
        warm_up: Run each of them once before.
    """
    if warm_up:
        for work in works.values():
            work.run()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            _wait(device)
            start = time.perf_counter()
            work.run()
            _wait(device)
            times[name].append((time.perf_counter() - start) / work.items)
    return {name: Timing(rounds) for name, rounds in times.items()}


def ratio(slow: Timing, fast: Timing) -> Ratio:
    """Ratio of the times of ``slow`` and ``fast``."""
    single = [a / b for a, b in zip(slow.rounds, fast.rounds, strict=True)]
    return Ratio(slow.median / fast.median, min(single), max(single))


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
