"""Risk and coverage: how many errors are left if only the most confident answers are given (El-Yaniv & Wiener 2010)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RiskCoverage(NamedTuple):
    """The curve, from the most confident answer on.

    Attributes:
        threshold: Distinct confidences, descending, ``[points]``.
        coverage: Fraction of answers that are at least as confident, ``[points]``; the last is 1.
        risk: Fraction of these that are wrong, ``[points]``; the last is the overall error.
        area: Area under the curve as a step function: the mean over answers of the risk at their confidence. Smaller
            is better; an order of the answers at random gives the overall error.
    """

    threshold: Tensor
    coverage: Tensor
    risk: Tensor
    area: float


def risk_coverage(confidence: Tensor, correct: Tensor) -> RiskCoverage:
    """Compute the curve; answers of equal confidence are given together, so their order has no influence.

    Args:
        confidence: Probabilities of the answers, ``[answers]``.
        correct: Whether they are right, bool ``[answers]``.

    Example:
        >>> risk_coverage(torch.tensor([0.9, 0.8, 0.5, 0.5]), torch.tensor([True, False, True, True])).risk
        tensor([0.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    ascending, place, counts = torch.unique(confidence.double(), return_inverse=True, return_counts=True)
    errors = torch.bincount(place, (~correct.bool()).double(), len(ascending)).flip(0).cumsum(0)
    given = counts.flip(0).cumsum(0)
    risk = errors / given
    area = float((risk * counts.flip(0)).sum() / max(1, len(confidence)))
    return RiskCoverage(ascending.flip(0), given / max(1, len(confidence)), risk, area)
