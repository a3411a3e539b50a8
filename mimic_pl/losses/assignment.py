"""Mentions and entities of a batch as an optimal-transport problem (Sinkhorn)."""

from __future__ import annotations

from torch import Tensor

from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses.loss import Loss


class AssignmentLoss(Loss):
    """Negative log of the transport plan's mass on the golds, after OT-MEL (Zhang et al. 2024).

        P = Sinkhorn(exp(S / temperature)), rows and columns of mass 1;  L = mean over mentions i of -log P_ii

    An entity that many mentions of the batch claim is shared out among them, so that one entity close to everything
    gains nothing. Entities beyond the batch's golds take no part: nobody's mass belongs to them.

    Args:
        weight: Weight of the term.
        temperature: Divides the scores; the smaller, the harder the assignment.
        iterations: Alternating normalisations, the last one of the rows.

    Raises:
        ConfigError: A weight or a temperature that is not positive, or no iteration.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 1.0, iterations: int = 5) -> None:
        super().__init__(weight)
        if temperature <= 0 or iterations < 1:
            raise ConfigError(
                f"AssignmentLoss takes a positive temperature and at least one iteration, not {temperature} and "
                f"{iterations}."
            )
        self.temperature = temperature
        self.iterations = iterations

    def forward(self, inputs: LossInputs) -> Tensor:
        """The weighted term of a batch."""
        plan = inputs.square() / self.temperature
        for _ in range(self.iterations):
            plan = plan - plan.logsumexp(dim=0, keepdim=True)
            plan = plan - plan.logsumexp(dim=1, keepdim=True)
        return -self.weight * plan.diagonal().mean()
