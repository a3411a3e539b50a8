"""Contrastive loss within each modality (M3EL)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs, at_least_float32
from mimic_pl.losses.loss import Loss, contrast
from mimic_pl.ranges import POSITIVE, in_range, one_of

Modality = Literal["text", "image"]


class IntraModalLoss(Loss):
    """Contrastive loss on the global features of each modality (M3EL, Hu et al. 2024).

        L = mean over modalities x of CE(cos(x_m^G, x_e^G) / temperature)

    It only affects the encoder: the features are taken before norms and units.

    Args:
        weight: Weight of the term.
        temperature: Divides the cosines; 0.03 in M3EL.
        modalities: ``text``, ``image`` or both.

    Raises:
        ConfigError: The weight or temperature is not positive, or there is no modality.
    """

    @in_range(temperature=POSITIVE, modalities=one_of(Modality))
    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.03,
        modalities: tuple[Modality, ...] = ("text", "image"),
    ) -> None:
        super().__init__(weight)
        if not modalities:
            raise ConfigError("IntraModalLoss: modalities is empty. Name text, image or both, or remove the loss.")
        self.temperature = temperature
        self.modalities = tuple(modalities)

    def forward(self, inputs: LossInputs) -> Tensor:
        """Compute the weighted term of a batch."""
        terms = []
        for modality in self.modalities:
            sides = (getattr(side, f"{modality}_global") for side in (inputs.mentions, inputs.entities))
            mention, entity = (nn.functional.normalize(at_least_float32(side), dim=-1) for side in sides)
            terms.append(contrast(mention @ entity.T / self.temperature, inputs.same_gold))
        return self.weight * torch.stack(terms).mean()
