"""What travels from a data module to the model: the tensors of some mentions and entities."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

Inputs = dict[str, Tensor]
"""One side of a batch, tensors ``[batch, ...]`` by name.

From a processor: ``input_ids`` and ``attention_mask`` (int64 ``[batch, text_tokens]``), ``pixels`` (uint8
``[batch, 3, S, S]``), ``has_image`` (bool ``[batch]``), and the named tensors of its
:class:`~mimic_pl.processor.RecordFeatures`. On the device ``pixels`` become ``pixel_values``, float32. Where features
of frozen towers are kept, ``image_key`` (int64 ``[batch, 2]``) is a hash of each image.
"""

ImageFailure = tuple[str, str]
"""Which image failed, and how: ``missing``, ``unreadable`` or ``oversized``."""


class Batch(TypedDict, total=False):
    """A batch of a data module's loaders.

    Attributes:
        mentions: The mentions.
        entities: The entities: in training a gold of each mention in turn, and further ones behind them.
        gold: Positions of each mention's golds in the knowledge base, int64 ``[mentions, golds]``, padded with -1.
        columns: In training: positions of the batch's entities, int64 ``[columns]``; column j is the gold of mention j
            that this epoch trains on.
        index: Positions of the mentions in their split, or of the entities in the knowledge base, int64 ``[batch]``;
            -1 for what is computed and not counted.
        gold_count: How many golds each mention has, in the knowledge base or not, int64 ``[mentions]``; only where
            some mention has several.
        seen: Whether a gold of the mention was trained on, int64 ``[mentions]`` (see
            :mod:`mimic_pl.data.training_split`); only in tests.
        failures: Images that could not be used.
    """

    mentions: Inputs
    entities: Inputs
    gold: Tensor
    columns: Tensor
    index: Tensor
    gold_count: Tensor
    seen: Tensor
    failures: list[ImageFailure]
