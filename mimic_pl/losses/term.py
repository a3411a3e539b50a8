"""What a further term of the loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError
from mimic_pl.features import Features


class LossTerm(Recorded, nn.Module, ABC):
    """A term that is added to the loss: ``weight`` times what :meth:`forward` returns.

    Args:
        weight: Its weight, positive.

    Raises:
        ConfigError: A weight that is not positive.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0:
            raise ConfigError(
                f"The weight of {type(self).__name__} is {weight} and must be positive. Leave the term out instead."
            )
        self.weight = weight

    @abstractmethod
    def forward(
        self, scores: Mapping[str, Tensor], mentions: Features, entities: Features, same_gold: Tensor
    ) -> Tensor:
        """Compute the term of a batch, a scalar.

        Args:
            scores: Named scores ``[batch, entities]``: entity j is the gold of mention j, any further are negatives.
            mentions: Features of the batch's mentions.
            entities: Features of their golds, and of further entities behind them.
            same_gold: Where an entity is a right answer of the mention once more, bool ``[batch, entities]``; never on
                the diagonal. What is right cannot be a negative.
        """


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is of a narrower type: a loss is not computed in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def contrast(logits: Tensor, same_gold: Tensor) -> Tensor:
    """Cross-entropy of each row with its diagonal as the target, a scalar.

    Args:
        logits: ``[batch, columns]``, at least as many columns as rows.
        same_gold: Columns that a row leaves out, bool of the same shape.
    """
    target = torch.arange(len(logits), device=logits.device)
    return nn.functional.cross_entropy(widened(logits).masked_fill(same_gold, -torch.inf), target)


def same_gold(gold: Tensor, golds: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """Which columns hold a right answer of a row beside the row's own column, bool ``[batch, columns]``.

    Args:
        gold: Position in the knowledge base of each mention's gold, int64 ``[batch]``: of the entity in its column.
        golds: Positions of all golds of each mention, int64 ``[batch, golds]``, padded with -1; where no mention has
            several they may be left out.
        columns: Positions of the entities in the columns, the golds first; by default the golds alone.
    """
    columns = gold if columns is None else columns
    right = (gold[:, None] if golds is None else golds)[:, :, None].eq(columns).any(dim=1)
    own = torch.arange(len(columns), device=gold.device)
    return right & own[: len(gold), None].ne(own)
