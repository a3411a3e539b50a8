"""What an encoder hands to the interaction units (paper section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FeatureDims(NamedTuple):
    """Widths of the features: ``text`` (the paper's d_T, 512) and ``image`` (d_V, 96)."""

    text: int
    image: int


class Features(NamedTuple):
    """Global and local features of one side, a batch of mentions or of entities.

    Attributes:
        text_global: t^G, the pooled text embedding, ``[batch, dims.text]``.
        text_local: t^L, one vector per text token, ``[batch, text_tokens, dims.text]``.
        image_global: v^G, the pooled picture embedding, ``[batch, dims.image]``.
        image_local: v^L, one vector per picture token, ``[batch, image_tokens, dims.image]``.
        text_mask: 1 for a text token, 0 for padding, ``[batch, text_tokens]``. The published model does not look at
            it; units that mask padding do.
    """

    text_global: Tensor
    text_local: Tensor
    image_global: Tensor
    image_local: Tensor
    text_mask: Tensor

    @property
    def dims(self) -> FeatureDims:
        """The widths of these features."""
        return FeatureDims(self.text_global.shape[-1], self.image_global.shape[-1])
