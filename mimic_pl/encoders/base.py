"""Base class of encoders: from inputs to features, with a tokenizer and an image processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.encoders.frozen import FrozenFeatures, Tower
from mimic_pl.features import FeatureDims, Features
from mimic_pl.files import cache_folder
from mimic_pl.processor import ImageProcessor, TextTokenizer

INPUTS = ("input_ids", "attention_mask", "pixel_values")
"""Arguments of an encoder; one side of a batch may contain more tensors."""

_MIN_BATCH = 32


def repeat_last(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pad a batch to 32 records by repeating the last one; larger batches are unchanged.

    Kernels for small products round differently from row to row, but equal records must have equal features wherever
    they are in a batch.

    Args:
        inputs: Tensors ``[batch, ...]``, including ``input_ids``.
    """
    size = len(inputs["input_ids"])
    if size >= _MIN_BATCH:
        return dict(inputs)
    rows = torch.arange(_MIN_BATCH, device=inputs["input_ids"].device).clamp_max(size - 1)
    return {name: tensor[rows] for name, tensor in inputs.items()}


class Encoder(Recorded, nn.Module, ABC):
    """Encodes tokens and images of a batch of mentions or entities to features (paper section 3.2).

    A subclass sets :attr:`dims` and :attr:`text_length` in its constructor, registers its pretrained towers with
    :meth:`add_towers`, and implements :meth:`forward`, :meth:`build_tokenizer` and :meth:`build_image_processor`.
    Mentions and entities share the same weights.

    Args:
        freeze: Freeze the towers.
        frozen_features: Folder that caches the outputs of frozen towers, so that each record is encoded once: ``auto``
            for the user's cache folder, ``None`` for no cache.

    Attributes:
        dims: Widths of the features, to which the units are built.
        text_length: Number of tokens to which texts are padded or truncated.
        reads_padding: The text tower reads padding, as SigLIP's does, so that texts must be padded to ``text_length``
            and may not be cut to the longest of a batch.
    """

    dims: FeatureDims
    text_length: int
    reads_padding: bool = False

    def __init__(self, freeze: bool = False, frozen_features: str | None = None) -> None:
        super().__init__()
        self.freeze = freeze
        self.frozen_features = frozen_features
        self._towers: tuple[nn.Module, ...] = ()
        self._frozen: FrozenFeatures | None = None

    def add_towers(self, *towers: nn.Module) -> None:
        """Register the pretrained towers, which ``freeze`` freezes; projections on top stay trainable."""
        self._towers = towers
        if self.freeze:
            for tower in towers:
                tower.requires_grad_(False)
            if self.frozen_features is not None:
                by_default = self.frozen_features == "auto"
                folder = cache_folder("features") if by_default else self.frozen_features
                if folder is not None:
                    self._frozen = FrozenFeatures(towers, folder, disk_fraction=0.5 if by_default else 1.0)
        # transformers returns models in evaluation mode, and Lightning does not change it.
        self.train()

    def train(self, mode: bool = True) -> Encoder:
        """Set training or evaluation mode; frozen towers stay in evaluation mode."""
        super().train(mode)
        if self.freeze:
            for tower in self._towers:
                tower.eval()
        return self

    @property
    def keeps_features(self) -> bool:
        """Whether outputs of frozen towers are cached; if so, :meth:`forward` also takes an ``image_key``."""
        return self._frozen is not None

    def run_tower(self, name: str, tower: Tower, inputs: Sequence[Tensor], keys: Tensor | None) -> dict[str, Tensor]:
        """Run a tower: without gradients if it is frozen, and only on inputs that are not in the cache if it is used.

        Args:
            name: ``text`` or ``vision``.
            tower: Maps the inputs to named outputs ``[batch, ...]``.
            inputs: Tensors ``[batch, ...]``.
            keys: Cache keys of the rows, int64 ``[batch, n]``; ``None`` to bypass the cache.
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

        An encoder that caches features of frozen towers (:attr:`keeps_features`) also takes ``image_key``, int64
        ``[batch, 2]``: a hash of each image, without which nothing is cached.
        """

    @abstractmethod
    def build_tokenizer(self) -> TextTokenizer:
        """Build the tokenizer of the text tower's checkpoint."""

    @abstractmethod
    def build_image_processor(self) -> ImageProcessor:
        """Build the image processor of the vision tower's checkpoint."""
