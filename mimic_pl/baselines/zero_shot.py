"""Zero-shot cosine of an encoder's pretrained global features, without the library's projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch, Inputs
from mimic_pl.data import MELDataModule
from mimic_pl.encoders import INPUTS, Encoder, repeat_last
from mimic_pl.encoding import BatchEncoder, Side
from mimic_pl.features import IMAGE_PRETRAINED, TEXT_PRETRAINED

_ENTITIES_AT_ONCE = 1 << 14
"""Entities whose vectors are converted to float64 at once."""


class Embeddings(NamedTuple):
    """Normalised global features of one side.

    Attributes:
        text: float32 ``[records, text width]``.
        image: float32 ``[records, image width]``; a record without an image has that of a blank image, as in the model.
        with_image: Number of records with an image that can be opened.
    """

    text: Tensor
    image: Tensor
    with_image: int


class Cosine:
    """Cosine of mention and entity, averaged over modalities.

    Args:
        mentions: Unit vectors of the mentions for each modality, ``[mentions, width]``.
        entities: Unit vectors of the entities for each modality, ``[entities, width]``.
    """

    def __init__(self, mentions: Sequence[Tensor], entities: Sequence[Tensor]) -> None:
        self._mentions = mentions
        self._entities = entities

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``."""
        parts = []
        for start in range(0, len(self._entities[0]), _ENTITIES_AT_ONCE):
            part = slice(start, start + _ENTITIES_AT_ONCE)
            # In float64 and rounded, so that equal entities have equal scores whatever their positions.
            sides = zip(self._mentions, self._entities, strict=True)
            cosines = [mentions[block].double() @ entities[part].double().T for mentions, entities in sides]
            parts.append(torch.stack(cosines).mean(dim=0).float())
        return torch.cat(parts, dim=1).numpy()


@torch.inference_mode()
def embed(encoder: Encoder, data: MELDataModule, split: str, device: str) -> tuple[Embeddings, Embeddings]:
    """Encode the mentions of a split and the knowledge base.

    The features are those of the pretrained towers (``text_pretrained`` and ``image_pretrained``), since projections on
    top are randomly initialised and would distort them; of an encoder without them, they are its global features.

    Args:
        encoder: The encoder; it is moved to the device.
        data: The data, set up for the split.
        split: ``val`` or ``test``.
        device: Torch device to compute on.

    Returns:
        Embeddings of the mentions and of the entities.
    """
    encoder.to(device)
    run = BatchEncoder(encoder, data.processor)
    mentions = data.test_dataloader() if split == "test" else data.val_dataloader()
    return (
        _embed_side(encoder, run, "mentions", mentions),
        _embed_side(encoder, run, "entities", data.entity_dataloader()),
    )


def _embed_side(encoder: Encoder, run: BatchEncoder, side: Side, loader: DataLoader[Batch]) -> Embeddings:
    texts, images = [], []
    with_image = 0

    def encode(inputs: Inputs) -> tuple[Tensor, Tensor]:
        size = len(inputs["input_ids"])
        features = encoder(**repeat_last({name: inputs[name] for name in INPUTS}))
        text = features.extra.get(TEXT_PRETRAINED, features.text_global)
        return text[:size], features.extra.get(IMAGE_PRETRAINED, features.image_global)[:size]

    for batch, (text, image) in run(loader, side, encode, f"Encoding {side}"):
        with_image += int(batch[side]["has_image"].sum())
        texts.append(normalize(text.float(), dim=-1).cpu())
        images.append(normalize(image.float(), dim=-1).cpu())
    return Embeddings(torch.cat(texts), torch.cat(images), with_image)
