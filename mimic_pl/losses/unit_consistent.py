"""The unit-consistent contrastive loss (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs, at_least_float32
from mimic_pl.losses.loss import contrast
from mimic_pl.ranges import NOT_NEGATIVE, POSITIVE, in_range


class UnitConsistentLoss(Recorded, nn.Module):
    """Sum of contrastive losses of the overall score and of each unit's score.

        L = sum over scores S of w_S CE(S / temperature)

    Rows are the mentions of a batch, columns their gold entities: the target of row i is column i, all other columns
    are negatives.

    Args:
        weights: w_S by score name (``overall``, ``text``, ...), 1 by default; a weight of 0 drops the term.
        temperature: Divides the scores; 1 in the paper.
        learn_temperature: Train the temperature, starting from this value.
        mask_false_negatives: Exclude other columns with a gold of the row's mention, such as the same gold entity of
            another mention in the batch. The published loss counts them as negatives.

    Raises:
        ConfigError: A weight is negative, or the temperature is not positive.
    """

    @in_range(weights=NOT_NEGATIVE, temperature=POSITIVE)
    def __init__(
        self,
        weights: dict[str, float] | None = None,
        temperature: float = 1.0,
        mask_false_negatives: bool = False,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.weights: Mapping[str, float] = dict(weights or {})
        self.log_temperature: nn.Parameter | None = None
        if learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.fixed_temperature = temperature
        self.mask_false_negatives = mask_false_negatives

    @property
    def temperature(self) -> Tensor | float:
        """Current temperature."""
        return self.fixed_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Returns:
            The weighted sum, and each unweighted term by score name, without those of weight 0.

        Raises:
            ConfigError: There is a weight for a score that the model does not have, or all weights are 0.
        """
        scores, same_gold = inputs.local  # mentions are independent: no communication between processes
        unknown = set(self.weights) - set(scores)
        if unknown:
            raise ConfigError(
                f"UnitConsistentLoss has weights for {sorted(unknown)}, but the model's scores are {sorted(scores)}."
            )
        masked = same_gold if self.mask_false_negatives else torch.zeros_like(same_gold)
        terms = {
            name: contrast(at_least_float32(score) / self.temperature, masked)
            for name, score in scores.items()
            if self.weights.get(name, 1.0) != 0
        }
        if not terms:
            raise ConfigError("UnitConsistentLoss: all weights are 0. Make at least one positive.")
        total = torch.stack([self.weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return inputs.local_weight * total, terms
