"""Base class of losses, and functions that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.loss_inputs import LossInputs, at_least_float32
from mimic_pl.ranges import POSITIVE, in_range


class Loss(Recorded, nn.Module, ABC):
    """A loss term: a scalar computed from the scores and features of a training batch.

    The model sums its losses. Any module that maps :class:`~mimic_pl.LossInputs` to a scalar can be used; this class
    adds a weight.

    Args:
        weight: Weight of the term, positive.

    Raises:
        ConfigError: The weight is not positive.

    Example:
        >>> class Margin(Loss):
        ...     def forward(self, inputs):
        ...         scores = inputs.square("overall")
        ...         return self.weight * (1 - scores.diagonal()[:, None] + scores).clamp_min(0).mean()
    """

    @in_range(weight=POSITIVE)
    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """Compute the weighted term of a batch, a scalar."""


def contrast(logits: Tensor, same_gold: Tensor) -> Tensor:
    """Cross-entropy of each row with its diagonal as the target, a scalar.

    Args:
        logits: ``[batch, columns]``, at least as many columns as rows.
        same_gold: Columns to exclude from a row, bool of the same shape.
    """
    target = torch.arange(len(logits), device=logits.device)
    return nn.functional.cross_entropy(at_least_float32(logits).masked_fill(same_gold, -torch.inf), target)


def same_gold(gold: Tensor, columns: Tensor) -> Tensor:
    """Which columns other than the diagonal contain a gold of the row's mention, bool ``[batch, columns]``.

    Args:
        gold: Positions of each mention's golds in the knowledge base, int64 ``[batch, golds]``, padded with -1.
        columns: Positions of the columns' entities, int64 ``[columns]``; column j is a gold of mention j.
    """
    is_gold = gold[:, :, None].eq(columns).any(dim=1)
    column = torch.arange(len(columns), device=gold.device)
    return is_gold & column[: len(gold), None].ne(column)
