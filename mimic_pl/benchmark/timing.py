"""Times that can be compared: both sides measured in turn, several times, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Work(NamedTuple):
    """Something to be timed.

    Attributes:
        run: Does it.
        items: What it does so many of (pairs, images, ...); times are given per item.
    """

    run: Callable[[], object]
    items: int = 1


class Timing(NamedTuple):
    """Seconds per item, one for each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.rounds)


class Ratio(NamedTuple):
    """How many times as long one work takes as another.

    Attributes:
        ratio: Of the medians.
        lowest: The lowest ratio of a single round.
        highest: The highest.
    """

    ratio: float
    lowest: float
    highest: float


def in_turn(works: Mapping[str, Work], rounds: int, device: str = "cpu", warm_up: bool = True) -> dict[str, Timing]:
    """Time works one after the other, again and again, so that a machine that slows down does so for all of them.

    Args:
        works: By name.
        rounds: How often each is timed.
        device: Where they compute; it is waited for.
        warm_up: Do each of them once before.
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
    """How many times as long ``slow`` takes as ``fast``."""
    single = [a / b for a, b in zip(slow.rounds, fast.rounds, strict=True)]
    return Ratio(slow.median / fast.median, min(single), max(single))


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
