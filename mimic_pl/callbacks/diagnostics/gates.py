"""Gates near zero: nothing passes them, and what lies behind them is not learned."""

from __future__ import annotations

from collections.abc import Mapping

from mimic_pl.callbacks.diagnostics.finding import Finding


class GateWatch:
    """Looks at the share of values of each gate that are near zero.

    Args:
        share: From this share on a gate counts as closed.
        near: What is near zero; the message repeats it.
    """

    def __init__(self, share: float, near: float) -> None:
        self.share = share
        self.near = near

    def look(self, near_zero: Mapping[str, float]) -> list[Finding]:
        """Judge one batch.

        Args:
            near_zero: Share of values near zero by gate (``vision/entity_to_mention``).
        """
        return [
            Finding(
                f"closed gate {name}",
                f"The gate {name} is closed: {share:.0%} of its values lie within {self.near:g} of zero. The features "
                "behind it hardly reach the score. Try without weight decay on the gate, a larger learning rate, or a "
                "larger loss weight of its unit; if its inputs are all alike (no images, empty texts), leave the "
                "unit out.",
            )
            for name, share in near_zero.items()
            if share >= self.share
        ]
