"""Optimal-transport assignment of a batch's mentions to entities (Sinkhorn)."""

from __future__ import annotations

from torch import Tensor

from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses.loss import Loss
from mimic_pl.ranges import COUNT, POSITIVE, in_range


class AssignmentLoss(Loss):
    """Negative log of the transport plan's mass on the golds (OT-MEL, Zhang et al. 2024).

        P = Sinkhorn(exp(S / temperature)), rows and columns of mass 1;  L = mean over mentions i of -log P_ii

    The mass of an entity with high scores for many mentions is distributed among them, so an entity close to everything
    gains nothing. Hard negatives are ignored, since no mass belongs to them.

    Args:
        weight: Weight of the term.
        temperature: Divides the scores; a lower one makes the assignment harder.
        iterations: Number of alternating normalisations, columns then rows.

    Raises:
        ConfigError: The weight or temperature is not positive, or there are no iterations.
    """

    @in_range(temperature=POSITIVE, iterations=COUNT)
    def __init__(self, weight: float = 1.0, temperature: float = 1.0, iterations: int = 5) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.iterations = iterations

    def forward(self, inputs: LossInputs) -> Tensor:
        """Compute the weighted term of a batch."""
        plan = inputs.square() / self.temperature
        for _ in range(self.iterations):
            plan = plan - plan.logsumexp(dim=0, keepdim=True)
            plan = plan - plan.logsumexp(dim=1, keepdim=True)
        return -self.weight * plan.diagonal().mean()
