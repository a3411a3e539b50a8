"""Features of one modality, drawn together directly (M3EL's intra-modal contrast)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses.loss import Loss, contrast, in_float32


class IntraModalLoss(Loss):
    """Contrast of the global features of mention and entity within each modality (M3EL, Hu et al. 2024).

        L = mean over modalities x of CE(cos(x_m^G, x_e^G) / temperature)

    It acts on the encoder alone, before norms and units.

    Args:
        weight: Weight of the term.
        temperature: Divides the cosines; 0.03 in M3EL.
        modalities: ``text``, ``image`` or both.

    Raises:
        ConfigError: A weight or a temperature that is not positive, or no modality.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.03,
        modalities: tuple[Literal["text", "image"], ...] = ("text", "image"),
    ) -> None:
        super().__init__(weight)
        if temperature <= 0 or not modalities:
            raise ConfigError(
                f"IntraModalLoss takes a positive temperature and at least one modality, not {temperature} and "
                f"{list(modalities)}."
            )
        self.temperature = temperature
        self.modalities = tuple(modalities)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The weighted term of a batch."""
        terms = []
        for modality in self.modalities:
            sides = (in_float32(getattr(side, f"{modality}_global")) for side in (inputs.mentions, inputs.entities))
            mention, entity = (nn.functional.normalize(side, dim=-1) for side in sides)
            terms.append(contrast(mention @ entity.T / self.temperature, inputs.same_gold))
        return self.weight * torch.stack(terms).mean()
