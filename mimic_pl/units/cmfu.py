"""CMFU, the cross-modal fusion-based matching unit (paper section 3.3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.units.base import State, Unit


class CMFU(Unit):
    """Text and image of each side fused into one vector, with the same weights on both sides.

        x = W_t t^G,  y = W_v v^L,  a = softmax(x y^T),  z = a y,  gate = tanh(w x + b),  h = LayerNorm(gate x + z)
        S_C = h_m . h_e

    Args:
        dims: Widths of the features.
        hidden_dim: Width of the fused vector.
    """

    reads_padding = False

    @in_range(hidden_dim=COUNT)
    def __init__(self, dims: FeatureDims, hidden_dim: int = 96) -> None:
        super().__init__(dims)
        self.text = nn.Linear(dims.text, hidden_dim)
        self.image = nn.Linear(dims.image, hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.norm = nn.LayerNorm(hidden_dim)

    def mention(self, features: Features) -> State:
        """State: ``fused`` ``[mentions, hidden_dim]``."""
        return {"fused": self._fuse(features)}

    def entity(self, features: Features) -> State:
        """State: ``fused`` ``[entities, hidden_dim]``."""
        return {"fused": self._fuse(features)}

    def score(self, mentions: State, entities: State) -> Tensor:
        """S_C, ``[mentions, entities]``."""
        return mentions["fused"] @ entities["fused"].T

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S_C of aligned pairs, ``[pairs]``."""
        return (mentions["fused"] * entities["fused"]).sum(dim=-1)

    def query_vector(self, mentions: State) -> Tensor:
        """The fused vector: its product is S_C, ``[mentions, hidden_dim]``."""
        return mentions["fused"]

    def key_vector(self, entities: State) -> Tensor:
        """The fused vector, ``[entities, hidden_dim]``."""
        return entities["fused"]

    def gates(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """The gate of each side: ``mention`` ``[mentions]`` and ``entity`` ``[entities]``."""
        sides = {"mention": mentions, "entity": entities}
        return {name: self._gate_value(self.text(side.text_global)).squeeze(-1) for name, side in sides.items()}

    def attention(self, features: Features) -> Tensor:
        """a, the attention of a side's text to the tokens of its image, from normed features: ``[batch, tokens]``."""
        return self._attend(self.text(features.text_global), self.image(features.image_local))

    @staticmethod
    def _attend(text: Tensor, image: Tensor) -> Tensor:
        return torch.einsum("bd,btd->bt", text, image).softmax(dim=-1)

    def _fuse(self, features: Features) -> Tensor:
        text = self.text(features.text_global)
        image = self.image(features.image_local)
        visual = torch.einsum("bt,btd->bd", self._attend(text, image), image)
        return self.norm(self._gate_value(text) * text + visual)

    def _gate_value(self, text: Tensor) -> Tensor:
        return torch.tanh(self.gate(text))
