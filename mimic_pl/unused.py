"""Parameters that the loss does not depend on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unused_parameters(model: nn.Module, loss: Tensor) -> dict[str, nn.Parameter]:
    """Trainable parameters, by name, that receive no gradient from a loss.

    For example, if the only unit reads one of the encoder's four features, the projections of the others are unused.

    Args:
        model: The model.
        loss: A scalar just computed by it; its graph is freed.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return {
        name: parameter
        for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
        if gradient is None
    }
