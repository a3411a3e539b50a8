"""The batch that a data module passes to the model: tensors of mentions and entities."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

Inputs = dict[str, Tensor]
"""One side of a batch, tensors ``[batch, ...]`` by name.

From a processor: ``input_ids`` and ``attention_mask`` (int64 ``[batch, text_tokens]``), ``pixels`` (uint8
``[batch, 3, S, S]``), ``has_image`` (bool ``[batch]``), and the named tensors of its
:class:`~mimic_pl.processor.RecordFeatures`. On the device ``pixels`` become ``pixel_values``, float32. If features of
frozen towers are cached, ``image_key`` (int64 ``[batch, 2]``) is a hash of each image.
"""

ImageFailure = tuple[str, str]
"""Path of an image that failed, and why: ``missing``, ``unreadable`` or ``oversized``."""


class Batch(TypedDict, total=False):
    """A batch of a data module's loaders.

    Attributes:
        mentions: The mentions.
        entities: The entities: in training one gold per mention, in order, followed by additional negatives.
        gold: Positions of each mention's golds in the knowledge base, int64 ``[mentions, golds]``, padded with -1.
        columns: In training: positions of the batch's entities, int64 ``[columns]``; column j is the gold of mention j
            that this epoch trains on.
        index: Positions of the mentions in their split, or of the entities in the knowledge base, int64 ``[batch]``;
            -1 for padding items, which are computed but not counted.
        gold_count: Number of golds of each mention, in the knowledge base or not, int64 ``[mentions]``; only if some
            mention has several.
        seen: Whether a gold of the mention was seen in training, int64 ``[mentions]`` (see
            :mod:`mimic_pl.data.training_split`); only for ``test``.
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
