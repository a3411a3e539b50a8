"""Reliability: confidence against accuracy (Guo et al. 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

BINS = 10


class Reliability(NamedTuple):
    """Confidence against accuracy, in bins of equal width between 0 and 1.

    Attributes:
        confidence: Mean confidence of each bin's answers, ``[bins]``; NaN for empty bins.
        accuracy: Fraction of them that are right, ``[bins]``; NaN for empty bins.
        share: Fraction of all answers in each bin, ``[bins]``.
        error: Expected calibration error: sum over bins of share * |accuracy - confidence|.
    """

    confidence: Tensor
    accuracy: Tensor
    share: Tensor
    error: float


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Reliability:
    """Compare confidence and accuracy.

    Args:
        confidence: Probabilities of the answers, ``[answers]``.
        correct: Whether they are right, bool ``[answers]``.
        bins: Number of bins; a confidence on a bin's edge belongs to the upper bin, and 1 to the last.
    """
    below_one = 1 - torch.finfo(torch.float64).eps  # 1 itself would be in a bin of its own
    confidence, right = confidence.double().clamp(0, below_one), correct.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges, right=True) - 1
    count = torch.bincount(place, minlength=bins).double()
    error = binary_calibration_error(confidence, correct.long(), n_bins=bins)
    return Reliability(
        torch.bincount(place, confidence, bins) / count,
        torch.bincount(place, right, bins) / count,
        count / max(1, len(confidence)),
        float(error),
    )
