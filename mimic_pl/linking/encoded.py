"""Records as attention and gates see them: normed features and tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.batch import Batch
from mimic_pl.encoding import Side
from mimic_pl.features import Features
from mimic_pl.model import MIMIC


class Encoded(NamedTuple):
    """Encoded records of one side.

    Attributes:
        features: Features after the shared norms.
        input_ids: Token ids, int64 ``[records, text_tokens]``.
        attention_mask: 1 for a token, 0 for padding, int64 ``[records, text_tokens]``.
    """

    features: Features
    input_ids: Tensor
    attention_mask: Tensor


def encoded(model: MIMIC, side: Side, batches: Iterable[Batch]) -> Encoded:
    """Encode one side of batches, without gradients."""
    parts: list[Features] = []
    ids, masks = [], []
    for batch, features in model.batch_encoder()(batches, side, model.encode):
        parts.append(model.matcher.norm(features))
        ids.append(batch[side]["input_ids"].cpu())
        masks.append(batch[side]["attention_mask"].cpu())
    return Encoded(Features.joined(parts), torch.cat(ids), torch.cat(masks))
