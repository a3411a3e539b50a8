"""The unit-consistent contrastive loss (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError
from mimic_pl.losses.term import same_gold, widened


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

    def forward(
        self,
        scores: Mapping[str, Tensor],
        gold: Tensor,
        golds: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            scores: Named scores ``[batch, columns]``: entity j is the gold of mention j, those behind are negatives.
            gold: Position in the knowledge base of each mention's gold, int64 ``[batch]``: of the entity in its column.
            golds: Positions of all golds of each mention; see :func:`~mimic_pl.losses.same_gold`.
            columns: Positions of the entities in the columns; see there.

        Returns:
            The weighted sum, and each unweighted term by score name (those of weight 0 left out).

        Raises:
            ConfigError: A weight is given for a score that the model does not have.
        """
        unknown = set(self.weights) - set(scores)
        if unknown:
            raise ConfigError(f"Loss weights for {sorted(unknown)}, but the model's scores are {sorted(scores)}.")
        target = torch.arange(len(gold), device=gold.device)
        left_out = same_gold(gold, golds, columns) if self.mask_false_negatives else None
        terms: dict[str, Tensor] = {}
        for name, score in scores.items():
            if self.weights.get(name, 1.0) == 0:
                continue
            logits = widened(score) / self.temperature
            if left_out is not None:
                logits = logits.masked_fill(left_out, -torch.inf)
            terms[name] = nn.functional.cross_entropy(logits, target)
        if not terms:
            raise ConfigError("All loss weights are 0: nothing is left to train on. Give one a positive weight.")
        total = torch.stack([self.weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return total, terms
