"""Weights that the loss does not depend on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unused_parameters(model: nn.Module, loss: Tensor) -> dict[str, nn.Parameter]:
    """Trainable parameters, by name, that get no gradient from a loss.

    A unit alone reads one of the encoder's four features, say, and what only makes the others trains nothing.

    Args:
        model: Whose parameters are looked at.
        loss: A scalar that has just been computed; its graph is used up.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return {
        name: parameter
        for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
        if gradient is None
    }
