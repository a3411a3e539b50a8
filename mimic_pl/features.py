"""What an encoder hands to the interaction units (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class FeatureDims(NamedTuple):
    """Widths of the features: ``text`` (the paper's d_T, 512) and ``image`` (d_V, 96)."""

    text: int
    image: int


class Terms(NamedTuple):
    """Texts as sparse vectors.

    Attributes:
        ids: Numbers of a text's terms, int64 ``[batch, terms]``.
        weights: Their weights ``[batch, terms]``; 0 where a text has fewer terms.
    """

    ids: Tensor
    weights: Tensor


class Features(NamedTuple):
    """Global and local features of one side, a batch of mentions or of entities.

    Attributes:
        text_global: t^G, the pooled text embedding, ``[batch, dims.text]``.
        text_local: t^L, one vector per text token, ``[batch, text_tokens, dims.text]``.
        image_global: v^G, the pooled image embedding, ``[batch, dims.image]``.
        image_local: v^L, one vector per image token, ``[batch, image_tokens, dims.image]``.
        text_mask: 1 for a text token, 0 for padding, ``[batch, text_tokens]``. The published model does not look at
            it; units that mask padding do.
        terms: The texts' words, where the data module has a lexicon. No encoder makes them; they come with the batch.
    """

    text_global: Tensor
    text_local: Tensor
    image_global: Tensor
    image_local: Tensor
    text_mask: Tensor
    terms: Terms | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """The same with each of its tensors replaced by what a function makes of it."""
        changed = {name: function(getattr(self, name)) for name in self._fields[:5]}
        return Features(**changed, terms=None if self.terms is None else Terms(*map(function, self.terms)))

    def as_float32(self) -> Features:
        """The same in float32, whatever precision it was computed in: what is ordered must not be rounded."""
        return self.map(lambda field: field.float() if field.is_floating_point() else field)

    def rows(self, chosen: slice | int | Tensor) -> Features:
        """Some of the mentions or entities."""
        return self.map(lambda field: field[chosen])

    @staticmethod
    def joined(batches: Iterable[Features]) -> Features:
        """Batches behind each other."""
        parts = list(batches)
        terms = [part.terms for part in parts if part.terms is not None]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in Features._fields[:5]}
        return Features(**joined, terms=Terms(*map(torch.cat, zip(*terms, strict=True))) if terms else None)

    def padded(self, tokens: int) -> Features:
        """The same with at least this many text tokens: zeros that the mask leaves out."""
        missing = tokens - self.text_local.shape[1]
        if missing <= 0:
            return self
        pad = torch.nn.functional.pad
        return self._replace(
            text_local=pad(self.text_local, (0, 0, 0, missing)), text_mask=pad(self.text_mask, (0, missing))
        )

    @property
    def dims(self) -> FeatureDims:
        """The widths of these features."""
        return FeatureDims(self.text_global.shape[-1], self.image_global.shape[-1])
