"""What every encoder has: its widths, tokenizer and image processor, and one call from inputs to features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
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

    Attributes:
        dims: Widths of the features it returns; the units are built to them.
        text_length: Tokens that a text is padded or cut to.
    """

    dims: FeatureDims
    text_length: int

    def __init__(self, freeze: bool = False) -> None:
        super().__init__()
        self.freeze = freeze
        self._towers: tuple[nn.Module, ...] = ()

    def add_towers(self, *towers: nn.Module) -> None:
        """Name the pretrained parts: these alone are frozen by ``freeze``; projections on top stay trainable."""
        self._towers = towers
        if self.freeze:
            for tower in towers:
                tower.requires_grad_(False)
        # transformers hands models out in evaluation mode and Lightning keeps the mode that it finds.
        self.train()

    def train(self, mode: bool = True) -> Encoder:
        """Switch dropout on or off, except in frozen towers, which stay in evaluation mode."""
        super().train(mode)
        if self.freeze:
            for tower in self._towers:
                tower.eval()
        return self

    def towers_grad(self) -> torch.set_grad_enabled:
        """Context for the towers' forward pass: no graph is recorded through frozen ones."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze)

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Features:
        """Encode one side.

        Args:
            input_ids: int64 ``[batch, text_tokens]``.
            attention_mask: 1 for a token, 0 for padding, int64 ``[batch, text_tokens]``.
            pixel_values: Normalised images, ``[batch, 3, image_size, image_size]``.
        """

    @abstractmethod
    def build_tokenizer(self) -> TextTokenizer:
        """Make the tokenizer of the checkpoint that the text tower came from."""

    @abstractmethod
    def build_image_processor(self) -> ImageProcessor:
        """Make the image processor of the checkpoint that the vision tower came from."""
