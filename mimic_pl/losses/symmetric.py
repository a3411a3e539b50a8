"""Contrastive loss in the direction from entities to mentions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses.loss import Loss
from mimic_pl.ranges import POSITIVE, in_range


class SymmetricLoss(Loss):
    """Cross-entropy over the batch's mentions for each gold entity, as in CLIP (Radford et al. 2021).

        L = mean over entities j of -log softmax_i(S_ij / temperature)_j

    Args:
        weight: Weight of the term.
        temperature: Divides the scores.
        scores: Names of the scores to average the loss over; the overall score by default.

    Raises:
        ConfigError: The weight or temperature is not positive.
    """

    @in_range(temperature=POSITIVE)
    def __init__(self, weight: float = 1.0, temperature: float = 1.0, scores: tuple[str, ...] = ("overall",)) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.scores = tuple(scores)

    def forward(self, inputs: LossInputs) -> Tensor:
        """Compute the weighted term of a batch.

        Raises:
            ConfigError: The model has no such score.
        """
        unknown = set(self.scores) - set(inputs.scores)
        if unknown:
            raise ConfigError(
                f"SymmetricLoss uses {sorted(unknown)}, but the model's scores are {sorted(inputs.scores)}."
            )
        squares = [inputs.square(name).T / self.temperature for name in self.scores]
        target = torch.arange(len(squares[0]), device=squares[0].device)
        return self.weight * torch.stack([nn.functional.cross_entropy(square, target) for square in squares]).mean()
