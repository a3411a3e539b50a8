"""How far a run's confidence can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimic_pl.report.evaluated_run import Predictions

BINS = 10


class Calibration(NamedTuple):
    """Confidence against accuracy, by bins of equal width between 0 and 1.

    Attributes:
        confidence: Mean confidence of a bin's mentions, ``[bins]``; NaN for an empty one.
        accuracy: Share of them whose first candidate is right, ``[bins]``; NaN for an empty one.
        share: Share of all mentions in each bin, ``[bins]``.
        error: Expected calibration error: mean over the mentions of |accuracy - confidence| of their bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]
    error: float


def calibration(predictions: Predictions, bins: int = BINS) -> Calibration:
    """Compute the calibration of the overall score (reliability diagram; Guo et al. 2017).

    The confidence in the first candidate is its share in the softmax of the overall scores *over the kept candidates*
    (``predictions.top_k`` of them, not the whole knowledge base), as the loss takes the softmax over a batch. It is the
    higher the fewer are kept: compare runs that keep as many.

    Args:
        predictions: Of a run.
        bins: Number of bins; a confidence on the line between two belongs to the lower one.
    """
    exponents = np.exp(predictions.top - predictions.top[:, :1])
    confidences = 1 / exponents.sum(axis=1)
    right = predictions.hits
    place = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, confidences, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    share = count / len(right)
    error = float(np.nansum(share * np.abs(accuracy - confidence)))
    return Calibration(confidence, accuracy, share, error)
