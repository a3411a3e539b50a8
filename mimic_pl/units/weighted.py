"""A matcher with learned weights of the units instead of the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.ranges import NOT_NEGATIVE, in_range
from mimic_pl.units.base import UnitFactory
from mimic_pl.units.matcher import Matcher

_SMALLEST = 1e-6
"""Minimum of the weights that are fitted."""

_OF_ZERO = -1e4
"""A raw weight whose softplus is exactly 0 in every precision."""


class WeightedMatcher(Matcher):
    """The overall score is a weighted sum of the units' scores.

        S = sum over units u of softplus(a_u) S_u,  a learned

    It starts as the mean, or from given weights. Weights are never negative, so the overall score never decreases when
    a unit's score increases and ranking can still bound it.

    Args:
        dims: Widths of the encoder's features.
        units: Named factories of the units.
        initial: Weights to start from by unit; the others start from 1 / number of units that are not at 0. A weight of
            0 has no gradient: such a unit is trained by its own loss only, and has no part in the overall score until
            its weight is fitted (:class:`~mimic_pl.callbacks.WeightCalibration`). So units that know nothing yet
            can be added to those of a pretrained model without changing its scores.

    Raises:
        ConfigError: A weight is negative, or of no unit.
    """

    monotone = True
    scoring_only = ("raw_weights",)

    @in_range(initial=NOT_NEGATIVE)
    def __init__(
        self, dims: FeatureDims, units: Mapping[str, UnitFactory], initial: dict[str, float] | None = None
    ) -> None:
        super().__init__(dims, units)
        given = dict(initial or {})
        if unknown := [name for name in given if name not in self.combined]:
            raise ConfigError(f"There are initial weights of {unknown}, but the units are {list(self.combined)}.")
        mean = 1 / max(1, sum(given.get(name, 1.0) > 0 for name in self.combined))
        weights = [given.get(name, mean) for name in self.combined]
        self.raw_weights = nn.Parameter(
            torch.tensor([math.log(math.expm1(weight)) if weight else _OF_ZERO for weight in weights])
        )

    @property
    def weights(self) -> dict[str, float]:
        """Current weight of each unit."""
        return dict(zip(self.combined, nn.functional.softplus(self.raw_weights).tolist(), strict=True))

    def set_weights(self, weights: Tensor) -> None:
        """Set the weight of each unit, ``[units]``, none negative."""
        # The inverse of softplus, which diverges at 0.
        wide = weights.to(self.raw_weights.device, torch.float64).clamp_min(_SMALLEST)
        with torch.no_grad():
            self.raw_weights.copy_(wide + torch.log(-torch.expm1(-wide)))

    def combine(self, scores: dict[str, Tensor]) -> Tensor:
        """S of pairs from the units' scores, of the same shape."""
        weights = nn.functional.softplus(self.raw_weights)
        return torch.stack([weight * scores[name] for weight, name in zip(weights, self.combined, strict=True)]).sum(
            dim=0
        )
