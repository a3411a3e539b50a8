"""A third-party unit with its own loss."""

from __future__ import annotations

import torch

from mimic_pl.units import GlobalCosine


class Auxiliary(GlobalCosine):
    """A unit with an auxiliary loss: a linear head classifies features as mention or entity."""

    def __init__(self, dims):
        super().__init__(dims)
        self.head = torch.nn.Linear(dims.text, 1)

    def loss(self, inputs):
        assert inputs.scores["auxiliary"].shape == inputs.same_gold.shape
        of_mentions, of_entities = (self.head(side.text_global) for side in (inputs.mentions, inputs.entities))
        return torch.nn.functional.softplus(torch.cat([of_mentions, -of_entities])).mean()
