"""What a loss is, and what all of them are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs


class Loss(Recorded, nn.Module, ABC):
    """A term of the loss: a scalar made of the scores and features of a training batch.

    The model sums its losses. Any module that is called with :class:`~mimic_pl.LossInputs` and returns a scalar can be
    one; this class adds a weight.

    Args:
        weight: Multiplies the term, positive.

    Raises:
        ConfigError: A weight that is not positive.

    Example:
        >>> class Margin(Loss):
        ...     def forward(self, inputs):
        ...         scores = inputs.square("overall")
        ...         return self.weight * (1 - scores.diagonal()[:, None] + scores).clamp_min(0).mean()
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0:
            raise ConfigError(
                f"The weight of {type(self).__name__} is {weight} and must be positive. Leave the loss out instead."
            )
        self.weight = weight

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """Compute the weighted term of a batch, a scalar."""


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is of a narrower type: a loss is not computed in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def contrast(logits: Tensor, same_gold: Tensor) -> Tensor:
    """Cross-entropy of each row with its diagonal as the target, a scalar.

    Args:
        logits: ``[batch, columns]``, at least as many columns as rows.
        same_gold: Columns that a row leaves out, bool of the same shape.
    """
    target = torch.arange(len(logits), device=logits.device)
    return nn.functional.cross_entropy(in_float32(logits).masked_fill(same_gold, -torch.inf), target)


def same_gold(gold: Tensor, columns: Tensor) -> Tensor:
    """Which columns hold a right answer of a row besides the row's own column, bool ``[batch, columns]``.

    Args:
        gold: Positions in the knowledge base of each mention's golds, int64 ``[batch, golds]``, padded with -1.
        columns: Positions of the entities in the columns, int64 ``[columns]``; column j is a gold of mention j.
    """
    right = gold[:, :, None].eq(columns).any(dim=1)
    own = torch.arange(len(columns), device=gold.device)
    return right & own[: len(gold), None].ne(own)
