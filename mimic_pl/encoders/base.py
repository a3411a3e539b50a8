"""What every encoder has: its widths, tokenizer and image processor, and one call from inputs to features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.encoders.frozen import FrozenFeatures, Tower
from mimic_pl.features import FeatureDims, Features
from mimic_pl.processor import ImageProcessor, TextTokenizer

INPUTS = ("input_ids", "attention_mask", "pixel_values")
"""What an encoder is called with; a side of a batch may hold more."""

_SMALLEST_BATCH = 32


def repeat_last(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch with its last record repeated until there are 32; a larger one as it is.

    The kernels for small products round differently from row to row, and records that are equal must have equal
    features wherever they are.

    Args:
        inputs: Tensors ``[batch, ...]``, ``input_ids`` among them.
    """
    size = len(inputs["input_ids"])
    if size >= _SMALLEST_BATCH:
        return dict(inputs)
    rows = torch.arange(_SMALLEST_BATCH, device=inputs["input_ids"].device).clamp_max(size - 1)
    return {name: tensor[rows] for name, tensor in inputs.items()}


class Encoder(Recorded, nn.Module, ABC):
    """Turns the tokens and images of a batch of mentions, or of entities, into features (paper section 3.2).

    A subclass sets :attr:`dims` and :attr:`text_length` in its constructor, registers its pretrained towers with
    :meth:`add_towers`, and implements :meth:`forward`, :meth:`build_tokenizer` and :meth:`build_image_processor`. The
    same weights serve mentions and entities.

    Args:
        freeze: Keep the towers as they are.
        frozen_features: Folder in which the outputs of frozen towers are kept, so that each record goes through them
            once: ``auto`` for the user's cache folder, ``None`` for nowhere.

    Attributes:
        dims: Widths of the features it returns; the units are built to them.
        text_length: Tokens that a text is padded or cut to.
    """

    dims: FeatureDims
    text_length: int

    def __init__(self, freeze: bool = False, frozen_features: str | None = None) -> None:
        super().__init__()
        self.freeze = freeze
        self.frozen_features = frozen_features
        self._towers: tuple[nn.Module, ...] = ()
        self._frozen: FrozenFeatures | None = None

    def add_towers(self, *towers: nn.Module) -> None:
        """Name the pretrained parts: these alone are frozen by ``freeze``; projections on top stay trainable."""
        self._towers = towers
        if self.freeze:
            for tower in towers:
                tower.requires_grad_(False)
            if self.frozen_features is not None:
                folder = None if self.frozen_features == "auto" else self.frozen_features
                self._frozen = FrozenFeatures(towers, folder)
        # transformers hands models out in evaluation mode and Lightning keeps the mode that it finds.
        self.train()

    def train(self, mode: bool = True) -> Encoder:
        """Switch dropout on or off, except in frozen towers, which stay in evaluation mode."""
        super().train(mode)
        if self.freeze:
            for tower in self._towers:
                tower.eval()
        return self

    @property
    def keeps_features(self) -> bool:
        """Whether outputs of frozen towers are kept; then :meth:`forward` takes an ``image_key`` as well."""
        return self._frozen is not None

    def run_tower(self, name: str, tower: Tower, inputs: Sequence[Tensor], keys: Tensor | None) -> dict[str, Tensor]:
        """Run a tower; without a graph if it is frozen, and only for inputs that are not known if features are kept.

        Args:
            name: ``text`` or ``vision``.
            tower: From the inputs to named outputs ``[batch, ...]``.
            inputs: Tensors ``[batch, ...]``.
            keys: What tells the inputs' rows apart, int64 ``[batch, n]``; ``None`` if their outputs are not to be kept.
        """
        if keys is not None and self._frozen is not None and self._frozen.usable:
            return self._frozen(name, tower, inputs, keys)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return tower(*inputs)

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Features:
        """Encode one side.

        Args:
            input_ids: int64 ``[batch, text_tokens]``.
            attention_mask: 1 for a token, 0 for padding, int64 ``[batch, text_tokens]``.
            pixel_values: Normalised images, ``[batch, 3, image_size, image_size]``.

        An encoder that keeps features of frozen towers (:attr:`keeps_features`) also takes ``image_key``, int64
        ``[batch, 2]``: a hash of each image, without which nothing is kept.
        """

    @abstractmethod
    def build_tokenizer(self) -> TextTokenizer:
        """Make the tokenizer of the checkpoint that the text tower came from."""

    @abstractmethod
    def build_image_processor(self) -> ImageProcessor:
        """Make the image processor of the checkpoint that the vision tower came from."""
