"""Detects gates near zero, which block the features behind them."""

from __future__ import annotations

from collections.abc import Mapping

from mimic_pl.callbacks.diagnostics.finding import Finding


class GateWatch:
    """Detects gates most of whose values are near zero.

    Args:
        share: Fraction of values near zero from which on a gate counts as closed.
        near: Bound of values near zero, for the message.
    """

    def __init__(self, share: float, near: float) -> None:
        self.share = share
        self.near = near

    def check(self, near_zero: Mapping[str, float]) -> list[Finding]:
        """Check one batch.

        Args:
            near_zero: Fraction of values near zero by gate (``vision/entity_to_mention``).
        """
        return [
            Finding(
                f"closed gate {name}",
                f"The gate {name} is closed: {share:.0%} of its values are within {self.near:g} of zero. The gated "
                "features hardly affect the score. Try no weight decay on the gate, a larger learning rate, or a "
                "larger loss weight of its unit; if its inputs are all alike (no images, empty texts), remove the "
                "unit.",
            )
            for name, share in near_zero.items()
            if share >= self.share
        ]
