"""Shares of the units in an overall score."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from mimic_pl.units import Matcher

CONSTANT = "constant"
"""Name of the part of a score that does not depend on any unit."""

_TOLERANCE = 1e-4
"""Relative error up to which parts add up, since overall scores are rounded to float32."""


@torch.no_grad()
def shares_of(matcher: Matcher, scores: Mapping[str, float]) -> dict[str, float]:
    """Split an overall score into the shares of the units, which add up to it.

    The share of a unit is what its score contributes: S_u / n in a mean of n units, w_u S_u in a weighted sum. It is in
    the unit of the overall score, and negative if the unit's score is: the unit then speaks against the entity. Where a
    unit's score of 0 lies has no meaning in itself, so compare an entity's shares with those of another one: the
    difference is what the unit contributes to its lead.

    Args:
        matcher: Combines the units' scores.
        scores: ``overall`` and each unit's score.

    Returns:
        Shares by unit, and :data:`CONSTANT` if the matcher adds one; empty if the overall score is not a sum over the
        units, such as their maximum.
    """
    names = list(matcher.units)
    device = next(matcher.parameters()).device

    def combined(only: str | None) -> float:
        own = {name: torch.full((1,), scores[name] if name == only else 0.0, device=device) for name in names}
        return float(matcher.overall(own))

    constant = combined(None)
    shares = {name: combined(name) - constant for name in names}
    if abs(constant) > _TOLERANCE:
        shares[CONSTANT] = constant
    scale = max(1.0, sum(map(abs, shares.values())))
    adds_up = math.isclose(sum(shares.values()), scores["overall"], rel_tol=0, abs_tol=_TOLERANCE * scale)
    return shares if adds_up else {}


def fractions_of(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares as fractions of the sum of their absolute values, from -1 to 1; negative ones speak against the entity."""
    total = sum(map(abs, shares.values()))
    return {name: share / total if total else 0.0 for name, share in shares.items()}
