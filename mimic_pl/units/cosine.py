"""A simple baseline unit: cosine similarity of the global features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.ranges import POSITIVE, in_range, one_of
from mimic_pl.units.base import State, Unit

Modality = Literal["both", "text", "image"]


class GlobalCosine(Unit):
    """Cosine of the concatenated global features with a learned scale, which sharpens it for a contrastive loss.

        S = exp(tau) cos([t_m^G ; v_m^G], [t_e^G ; v_e^G]),  tau learned

    Args:
        dims: Widths of the features.
        scale: Initial exp(tau); 1 / 0.07 as in CLIP.
        modality: Compare the ``text`` features only, the ``image`` features only, or ``both``.
    """

    reads_padding = False

    @in_range(scale=POSITIVE, modality=one_of(Modality))
    def __init__(self, dims: FeatureDims, scale: float = 1 / 0.07, modality: Modality = "both") -> None:
        super().__init__(dims)
        self.modality = modality
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def mention(self, features: Features) -> State:
        """State: ``direction`` ``[mentions, width]``, unit vectors."""
        return {"direction": self._direction(features)}

    def entity(self, features: Features) -> State:
        """State: ``direction`` ``[entities, width]``, unit vectors."""
        return {"direction": self._direction(features)}

    def score(self, mentions: State, entities: State) -> Tensor:
        """S, ``[mentions, entities]``."""
        return self.log_scale.exp() * (mentions["direction"] @ entities["direction"].T)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S of aligned pairs, ``[pairs]``."""
        return self.log_scale.exp() * (mentions["direction"] * entities["direction"]).sum(dim=-1)

    def _direction(self, features: Features) -> Tensor:
        compared = {
            "text": [features.text_global],
            "image": [features.image_global],
            "both": [features.text_global, features.image_global],
        }[self.modality]
        return nn.functional.normalize(torch.cat(compared, dim=-1), dim=-1)
