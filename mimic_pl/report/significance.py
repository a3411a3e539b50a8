"""Significance of differences between runs: paired bootstrap over test mentions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimic_pl.bootstrap import RESAMPLES, SEED, interval, resampled_means
from mimic_pl.errors import DataError
from mimic_pl.evaluated_run import Predictions


class Comparison(NamedTuple):
    """Difference of a metric between two runs.

    Attributes:
        difference: First minus second, averaged over mentions.
        low: Lower end of the 95 % confidence interval.
        high: Upper end of the interval.
        p: Two-sided p-value of the null hypothesis of no difference.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    differences: Mapping[str, NDArray[np.float64]], resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Comparison]:
    """Paired bootstrap over mentions (Koehn 2004; Berg-Kirkpatrick, Burkett and Klein 2012).

    The n test mentions are resampled with replacement ``resamples`` times, and both runs are evaluated on each
    resample, which for means over mentions is the mean of per-mention differences. With d the difference on the test
    set and d* that on a resample,

    - the interval contains the middle 95 % of the d* (percentile interval);
    - p is the fraction of resamples with ``|d* - d| >= |d|``: resamples vary around d as test sets vary around the true
      difference, so d* - d follows the null distribution (Berg-Kirkpatrick's ``d* > 2 d``, two-sided). The test set
      itself counts as one resample, so that p is never 0.

    This quantifies variation over mentions, not over seeds.

    Args:
        differences: Per-mention values of the first run minus those of the second, ``[mentions]``, by metric.
        resamples: Number of resamples.
        seed: Seed of the resamples, which are the same for all metrics.

    Example:
        >>> hits, others = np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 1])
        >>> paired_bootstrap({"H@1": hits - others})["H@1"].difference
        0.25
    """
    names = list(differences)
    values = np.stack([differences[name] for name in names])  # [metrics, mentions]
    drawn = resampled_means(values, resamples, seed)
    found = {}
    for name, own, draws in zip(names, values, drawn, strict=True):
        difference = float(own.mean())
        low, high = interval(draws)
        # Sums of thirds and fifths round differently depending on their order.
        beyond = np.abs(draws - difference) >= abs(difference) - 1e-12
        found[name] = Comparison(difference, low, high, float((beyond.sum() + 1) / (resamples + 1)))
    return found


def compare(first: Sequence[Predictions], second: Sequence[Predictions]) -> dict[str, Comparison]:
    """Compare two experiments on the same mentions by H@1 and MRR.

    With several seeds, the value of a mention is its mean over the seeds.

    Args:
        first: Predictions of each run of the first experiment.
        second: Predictions of each run of the second experiment.

    Returns:
        Comparisons by metric, first minus second, as fractions between 0 and 1.

    Raises:
        DataError: The mentions differ; the message lists some of them.
    """
    order = first[0]
    hits = [_mean([_aligned(run, order, run.hits) for run in runs]) for runs in (first, second)]
    mrr = [_mean([_aligned(run, order, run.reciprocal_ranks) for run in runs]) for runs in (first, second)]
    return paired_bootstrap({"hits@1": hits[0] - hits[1], "mrr": mrr[0] - mrr[1]})


def _mean(runs: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.mean(runs, axis=0)
    return mean


def _aligned(run: Predictions, order: Predictions, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A run's values in another run's order of mentions."""
    rows = range(len(run.ids))
    if run.ids != order.ids:
        row_of = {id_: row for row, id_ in enumerate(run.ids)}
        if len(row_of) < len(run.ids) or len(order.ids) != len(run.ids) or row_of.keys() != set(order.ids):
            raise DataError(_difference(run, order))
        rows = [row_of[id_] for id_ in order.ids]  # type: ignore[assignment]
    for row, id_, golds in zip(rows, order.ids, order.golds, strict=True):
        if run.golds[row] != golds:
            raise DataError(
                f"Runs can only be compared on the same mentions, but {id_!r} has the golds {list(golds)} in one and "
                f"{list(run.golds[row])} in the other. Test both on the same data."
            )
    return values[list(rows)]


def _difference(run: Predictions, order: Predictions) -> str:
    own, other = set(run.ids), set(order.ids)
    parts = [f"one was tested on {len(order.ids)} mentions, the other on {len(run.ids)}"]
    for text, missing in (("only the first has", other - own), ("only the second has", own - other)):
        if missing:
            some = ", ".join(sorted(missing)[:5])
            parts.append(f"{text} {len(missing)} of the ids ({some}{', ...' if len(missing) > 5 else ''})")
    if own == other:
        parts.append("ids are duplicated and in a different order")
    return f"Runs can only be compared on the same mentions: {'; '.join(parts)}. Test both on the same data."
