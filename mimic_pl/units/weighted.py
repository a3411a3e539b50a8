"""A matcher with learned weights of the units instead of the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims
from mimic_pl.units.base import UnitFactory
from mimic_pl.units.matcher import Matcher

_SMALLEST = 1e-6
"""Minimum of the weights that are set."""


class WeightedMatcher(Matcher):
    """The overall score is a weighted sum of the units' scores.

        S = sum over units u of softplus(a_u) S_u,  a learned

    It starts as the mean. Weights are never negative, so the overall score never decreases when a unit's score
    increases and ranking can still bound it.

    Args:
        dims: Widths of the encoder's features.
        units: Named factories of the units.
    """

    monotone = True

    def __init__(self, dims: FeatureDims, units: Mapping[str, UnitFactory]) -> None:
        super().__init__(dims, units)
        self.raw_weights = nn.Parameter(torch.full((len(self.units),), math.log(math.expm1(1 / len(self.units)))))

    @property
    def weights(self) -> dict[str, float]:
        """Current weight of each unit."""
        return dict(zip(self.units, nn.functional.softplus(self.raw_weights).tolist(), strict=True))

    def set_weights(self, weights: Tensor) -> None:
        """Set the weight of each unit, ``[units]``, none negative."""
        # The inverse of softplus, which diverges at 0.
        wide = weights.to(self.raw_weights.device, torch.float64).clamp_min(_SMALLEST)
        with torch.no_grad():
            self.raw_weights.copy_(wide + torch.log(-torch.expm1(-wide)))

    def combine(self, scores: dict[str, Tensor]) -> Tensor:
        """S of pairs from the units' scores, of the same shape."""
        weights = nn.functional.softplus(self.raw_weights)
        return torch.stack([weight * scores[name] for weight, name in zip(weights, self.units, strict=True)]).sum(dim=0)
