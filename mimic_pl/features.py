"""Features: the output of an encoder and input of the interaction units (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

TEXT_PRETRAINED, IMAGE_PRETRAINED = "text_pretrained", "image_pretrained"
"""Names in :attr:`Features.extra` of the pretrained towers' own global features, without any projection or norm."""


class FeatureDims(NamedTuple):
    """Widths of the features: ``text`` (the paper's d_T, 512) and ``image`` (d_V, 96).

    ``text_pretrained`` and ``image_pretrained`` are the widths of the extra features of the same names, 0 for an
    encoder that does not return them.
    """

    text: int
    image: int
    text_pretrained: int = 0
    image_pretrained: int = 0

    @property
    def pretrained(self) -> dict[str, int]:
        """Widths of the extra features, without those that the encoder does not return."""
        widths = {TEXT_PRETRAINED: self.text_pretrained, IMAGE_PRETRAINED: self.image_pretrained}
        return {name: width for name, width in widths.items() if width}


class Features(NamedTuple):
    """Global and local features of one side, a batch of mentions or of entities.

    Attributes:
        text_global: t^G, the pooled text embedding, ``[batch, dims.text]``.
        text_local: t^L, one vector per text token, ``[batch, text_tokens, dims.text]``.
        image_global: v^G, the pooled image embedding, ``[batch, dims.image]``.
        image_local: v^L, one vector per image token, ``[batch, image_tokens, dims.image]``.
        text_mask: 1 for a text token, 0 for padding, ``[batch, text_tokens]``. The published model ignores it; units
            that mask padding use it.
        extra: Additional tensors by name, each ``[batch, ...]``: those of the processor's
            :class:`~mimic_pl.processor.RecordFeatures`; ``text_pretrained`` and ``image_pretrained``, the global
            features of pretrained towers without the projections and norms of this library, with zeros for a missing
            image; and any that a custom encoder adds.
    """

    text_global: Tensor
    text_local: Tensor
    image_global: Tensor
    image_local: Tensor
    text_mask: Tensor
    extra: Mapping[str, Tensor] = {}

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """Apply a function to each tensor."""
        return Features.of({name: function(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, including the extra ones."""
        return {**{name: getattr(self, name) for name in _FIELDS}, **self.extra}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Features:
        """Undo :meth:`tensors`."""
        extra = {name: tensor for name, tensor in tensors.items() if name not in _FIELDS}
        own: dict[str, Tensor] = {name: tensors[name] for name in _FIELDS}
        return Features(**own, extra=extra)

    def to(self, dtype: torch.dtype) -> Features:
        """Convert floating-point tensors to a dtype."""
        return self.map(lambda field: convert_floats(field, dtype))

    def rows(self, chosen: slice | int | Tensor) -> Features:
        """Select mentions or entities."""
        return self.map(lambda field: field[chosen])

    @staticmethod
    def joined(batches: Iterable[Features]) -> Features:
        """Concatenate batches."""
        parts = [batch.tensors() for batch in batches]
        return Features.of({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def padded(self, tokens: int) -> Features:
        """Pad to at least this many text tokens with zeros, masked out."""
        missing = tokens - self.text_local.shape[1]
        if missing <= 0:
            return self
        pad = torch.nn.functional.pad
        return self._replace(
            text_local=pad(self.text_local, (0, 0, 0, missing)), text_mask=pad(self.text_mask, (0, missing))
        )

    @property
    def dims(self) -> FeatureDims:
        """Widths of these features."""
        pretrained = (self.extra[name].shape[-1] if name in self.extra else 0 for name in _PRETRAINED)
        return FeatureDims(self.text_global.shape[-1], self.image_global.shape[-1], *pretrained)


def convert_floats(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to a dtype if it is floating-point."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


_PRETRAINED = (TEXT_PRETRAINED, IMAGE_PRETRAINED)
_FIELDS = ("text_global", "text_local", "image_global", "image_local", "text_mask")
