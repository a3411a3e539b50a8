"""Base class of encoders: from inputs to features, with a tokenizer and an image processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.encoders.frozen import FrozenFeatures, Tower
from mimic_pl.features import FeatureDims, Features
from mimic_pl.files import cache_folder
from mimic_pl.processor import ImageProcessor, TextTokenizer

INPUTS = ("input_ids", "attention_mask", "pixel_values")
"""Arguments of an encoder; one side of a batch may contain more tensors."""

_ROWS_AT_ONCE = 4
"""A number of rows of which matrix kernels round every row of a multiple alike, on the CPUs tried; a product of fewer
rows, and the last rows of other numbers, are computed by other kernels."""

_ENTITIES_AT_LEAST = 32


def repeat_last(inputs: Mapping[str, Tensor], at_least: int = _ENTITIES_AT_LEAST) -> dict[str, Tensor]:
    """Pad a batch by repeating the last record, so that a record's features do not depend on the batch it is in.

    Kernels for small products round differently from row to row, but equal records must have equal features wherever
    they are in a batch, and whatever its size.

    Args:
        inputs: Tensors ``[batch, ...]``, including ``input_ids``.
        at_least: Number of records of a padded batch; larger batches are padded to a multiple of 4.
    """
    size = len(inputs["input_ids"])
    padded = max(at_least, -(-size // _ROWS_AT_ONCE) * _ROWS_AT_ONCE)
    if size == padded:
        return dict(inputs)
    rows = torch.arange(padded, device=inputs["input_ids"].device).clamp_max(size - 1)
    return {name: tensor[rows] for name, tensor in inputs.items()}


class Encoder(Recorded, nn.Module, ABC):
    """Encodes tokens and images of a batch of mentions or entities to features (paper section 3.2).

    A subclass sets :attr:`dims` and :attr:`text_length` in its constructor, registers its pretrained towers with
    :meth:`add_towers`, and implements :meth:`forward`, :meth:`build_tokenizer` and :meth:`build_image_processor`.
    Mentions and entities share the same weights. It may also return the towers' own global features,
    ``text_pretrained`` and ``image_pretrained`` in :attr:`Features.extra`, with their widths in :attr:`dims`, for units
    that need them without projections.

    Args:
        freeze: Freeze the towers.
        frozen_features: Folder that caches the outputs of frozen towers, so that each record is encoded once: ``auto``
            for the user's cache folder, ``None`` for no cache.

    Attributes:
        dims: Widths of the features, to which the units are built.
        text_length: Number of tokens to which texts are padded or truncated.
        started_from: Names or folders of the pretrained checkpoints that the weights started from, for model cards.
        reads_padding: The text tower reads padding, as SigLIP's does, so that texts must be padded to ``text_length``
            and may not be cut to the longest of a batch.
    """

    dims: FeatureDims
    text_length: int
    reads_padding: bool = False
    steady_batch: int = _ROWS_AT_ONCE
    started_from: tuple[str, ...] = ()

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
    def frozen(self) -> bool:
        """Whether there are towers, and no weight of them is trained."""
        weights = [weight for tower in self._towers for weight in tower.parameters()]
        return bool(weights) and not any(weight.requires_grad for weight in weights)

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

    # ---- configuration files ------------------------------------------------------------------------------------

    def save_config(self, folder: Path) -> None:
        """Write all but the weights: the files that :meth:`config_arguments` names.

        By default nothing, for encoders that their own constructor arguments describe completely.

        Args:
            folder: An existing, empty folder.

        Raises:
            ConfigError: The checkpoint that the encoder was built from is needed for it and is no longer there.
        """

    @classmethod
    def config_arguments(cls, folder: Path) -> dict[str, Any]:
        """Arguments that build the encoder from the files of :meth:`save_config`, with random weights.

        They replace the arguments of the same names that the encoder was built with; by default none.

        Args:
            folder: The folder with the files.
        """
        return {}
