"""The other direction: which mention an entity belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimic_pl.errors import ConfigError
from mimic_pl.features import Features
from mimic_pl.losses.term import LossTerm, contrast


class SymmetricLoss(LossTerm):
    """Cross-entropy over the batch's mentions for each gold entity, as in CLIP (Radford et al. 2021).

        L = mean over entities j of -log softmax_i(S_ij / temperature)_j

    Args:
        weight: Weight of the term.
        temperature: Divides the scores.
        scores: Which scores it is taken of, as a mean; the overall score by default.

    Raises:
        ConfigError: A weight or a temperature that is not positive.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 1.0, scores: tuple[str, ...] = ("overall",)) -> None:
        super().__init__(weight)
        if temperature <= 0:
            raise ConfigError(f"SymmetricLoss: the temperature is {temperature} and must be positive.")
        self.temperature = temperature
        self.scores = tuple(scores)

    def forward(
        self, scores: Mapping[str, Tensor], mentions: Features, entities: Features, same_gold: Tensor
    ) -> Tensor:
        """The term of a batch; see :meth:`LossTerm.forward`.

        Raises:
            ConfigError: The model has no such score.
        """
        unknown = set(self.scores) - set(scores)
        if unknown:
            raise ConfigError(f"SymmetricLoss names {sorted(unknown)}, but the model's scores are {sorted(scores)}.")
        size = len(same_gold)  # further entities are nobody's gold
        columns = [contrast(scores[name][:, :size].T / self.temperature, same_gold[:, :size].T) for name in self.scores]
        return sum(columns[1:], start=columns[0]) / len(columns)
