"""A unit of another project, which brings a loss."""

from __future__ import annotations

import torch

from mimic_pl.units import GlobalCosine


class Auxiliary(GlobalCosine):
    """A unit that brings a loss of its own: a head of its own tells which side features are of."""

    def __init__(self, dims):
        super().__init__(dims)
        self.head = torch.nn.Linear(dims.text, 1)

    def loss(self, inputs):
        assert inputs.scores["auxiliary"].shape == inputs.same_gold.shape
        of_mentions, of_entities = (self.head(side.text_global) for side in (inputs.mentions, inputs.entities))
        return torch.nn.functional.softplus(torch.cat([of_mentions, -of_entities])).mean()
