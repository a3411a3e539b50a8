"""Bootstrap over test mentions: how much a mean over mentions varies with the choice of mentions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 0

_SAMPLES_AT_ONCE = 1 << 22
"""Mentions sampled at once: 32 MB."""


def resampled_means(values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Means of values of mentions that are drawn with replacement, as many as there are.

    Args:
        values: Values of each mention by metric, ``[metrics, mentions]``.
        resamples: Number of draws.
        seed: Seed of the draws, which are the same for all metrics.

    Returns:
        The means, ``[metrics, resamples]``.
    """
    metrics, count = values.shape
    generator = np.random.default_rng(seed)
    drawn = np.empty((metrics, resamples))
    at_once = max(1, _SAMPLES_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        mentions = generator.integers(0, count, (rows, count), dtype=np.int32)
        for metric, own in enumerate(values):
            drawn[metric, start : start + rows] = own[mentions].mean(axis=1)
    return drawn


def interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled means, ``[resamples]``."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
