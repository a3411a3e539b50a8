"""The unit-consistent contrastive loss (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses.loss import contrast, in_float32


class UnitConsistentLoss(Recorded, nn.Module):
    """A contrastive loss for the overall score and one for each unit's, summed.

        L = sum over scores S of w_S CE(S / temperature)

    Rows are the mentions of a batch, columns their gold entities: the target of row i is column i, all other columns
    are negatives.

    Args:
        weights: w_S by score name (``overall``, ``text``, ...); scores that are not named weigh 1, and a weight of 0
            leaves a term out.
        temperature: Divides the scores; 1 in the paper.
        learn_temperature: Train the temperature, from that value on.
        mask_false_negatives: Leave out a column that holds the row's own gold a second time (two mentions of the batch
            with the same gold entity), or another of its golds. The published loss counts it as a negative.

    Raises:
        ConfigError: A negative weight or a temperature that is not positive.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        temperature: float = 1.0,
        mask_false_negatives: bool = False,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"The loss's temperature is {temperature}; it divides the scores and must be positive.")
        negative = {name: weight for name, weight in (weights or {}).items() if weight < 0}
        if negative:
            raise ConfigError(f"Loss weights must not be negative, but {negative} are.")
        self.weights: Mapping[str, float] = dict(weights or {})
        self.log_temperature: nn.Parameter | None = None
        if learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.fixed_temperature = temperature
        self.mask_false_negatives = mask_false_negatives

    @property
    def temperature(self) -> Tensor | float:
        """What the scores are divided by, as it is now."""
        return self.fixed_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Returns:
            The weighted sum, and each unweighted term by score name (those of weight 0 left out).

        Raises:
            ConfigError: A weight is given for a score that the model does not have.
        """
        scores, same_gold = inputs.own  # each mention by itself: nothing is exchanged between processes
        unknown = set(self.weights) - set(scores)
        if unknown:
            raise ConfigError(f"Loss weights for {sorted(unknown)}, but the model's scores are {sorted(scores)}.")
        nothing = torch.zeros_like(same_gold)
        terms = {
            name: contrast(in_float32(score) / self.temperature, same_gold if self.mask_false_negatives else nothing)
            for name, score in scores.items()
            if self.weights.get(name, 1.0) != 0
        }
        if not terms:
            raise ConfigError("All loss weights are 0: nothing is left to train on. Give one a positive weight.")
        total = torch.stack([self.weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return inputs.own_weight * total, terms
