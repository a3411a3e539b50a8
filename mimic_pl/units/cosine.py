"""The simple baseline unit: no interaction at all, only the similarity of the global features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.units.base import State, Unit


class GlobalCosine(Unit):
    """Cosine of the concatenated global features, scaled so that a contrastive loss can sharpen it.

        S = exp(tau) cos([t_m^G ; v_m^G], [t_e^G ; v_e^G]),  tau learned

    Args:
        dims: Widths of the features.
        scale: Initial exp(tau); 1 / 0.07 as in CLIP.
    """

    reads_padding = False

    def __init__(self, dims: FeatureDims, scale: float = 1 / 0.07) -> None:
        super().__init__(dims)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def mention(self, features: Features) -> State:
        """State: ``direction`` ``[mentions, dims.text + dims.image]``, of length 1."""
        return {"direction": self._direction(features)}

    def entity(self, features: Features) -> State:
        """State: ``direction`` ``[entities, dims.text + dims.image]``, of length 1."""
        return {"direction": self._direction(features)}

    def score(self, mentions: State, entities: State) -> Tensor:
        """S, ``[mentions, entities]``."""
        return self.log_scale.exp() * (mentions["direction"] @ entities["direction"].T)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S of aligned pairs, ``[pairs]``."""
        return self.log_scale.exp() * (mentions["direction"] * entities["direction"]).sum(dim=-1)

    @staticmethod
    def _direction(features: Features) -> Tensor:
        return nn.functional.normalize(torch.cat([features.text_global, features.image_global], dim=-1), dim=-1)
