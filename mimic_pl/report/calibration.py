"""Calibration of a run's confidence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimic_pl.report.evaluated_run import Predictions

BINS = 10


class Calibration(NamedTuple):
    """Confidence against accuracy, in bins of equal width between 0 and 1.

    Attributes:
        confidence: Mean confidence of each bin's mentions, ``[bins]``; NaN for empty bins.
        accuracy: Fraction of them whose first candidate is correct, ``[bins]``; NaN for empty bins.
        share: Fraction of all mentions in each bin, ``[bins]``.
        error: Expected calibration error: mean over mentions of |accuracy - confidence| of their bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]
    error: float


def calibration(predictions: Predictions, bins: int = BINS) -> Calibration:
    """Compute the calibration of the overall score (reliability diagram; Guo et al. 2017).

    The confidence in the first candidate is its probability in the softmax of the overall scores *over the stored
    candidates* (``predictions.top_k`` of them, not the whole knowledge base), as the loss takes the softmax over a
    batch. It is higher with fewer candidates: only compare runs that store the same number.

    Args:
        predictions: Predictions of a run.
        bins: Number of bins; a confidence on a bin edge belongs to the lower bin.
    """
    exponents = np.exp(predictions.top - predictions.top[:, :1])
    confidences = 1 / exponents.sum(axis=1)
    correct = predictions.hits
    bin_index = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bin_index, confidences, bins) / count
        accuracy = np.bincount(bin_index, correct, bins) / count
    share = count / len(correct)
    error = float(np.nansum(share * np.abs(accuracy - confidence)))
    return Calibration(confidence, accuracy, share, error)
