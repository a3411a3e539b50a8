"""Zero-shot cosine of an encoder: its global features as its towers were trained, without any of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch, Inputs
from mimic_pl.data import MELDataModule
from mimic_pl.encoders import INPUTS, Encoder, repeat_last
from mimic_pl.encoding import BatchEncoder, Side

_ENTITIES_AT_ONCE = 1 << 14
"""Entities whose vectors are held in float64 at once."""


class Embeddings(NamedTuple):
    """Global features of one side, of length 1.

    Attributes:
        text: float32 ``[records, text width]``.
        image: float32 ``[records, image width]``; a record without an image has that of the blank image, as in the
            model.
        with_image: How many records have an image that opens.
    """

    text: Tensor
    image: Tensor
    with_image: int


class Cosine:
    """Mean over kinds of features of the cosine of mention and entity.

    Args:
        mentions: For each kind the mentions' vectors of length 1, ``[mentions, width]``.
        entities: For each kind the entities' vectors of length 1, ``[entities, width]``.
    """

    def __init__(self, mentions: Sequence[Tensor], entities: Sequence[Tensor]) -> None:
        self._mentions = mentions
        self._entities = entities

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``."""
        parts = []
        for start in range(0, len(self._entities[0]), _ENTITIES_AT_ONCE):
            part = slice(start, start + _ENTITIES_AT_ONCE)
            # In float64 and rounded: equal entities have equal scores wherever they stand.
            sides = zip(self._mentions, self._entities, strict=True)
            cosines = [mentions[block].double() @ entities[part].double().T for mentions, entities in sides]
            parts.append(torch.stack(cosines).mean(dim=0).float())
        return torch.cat(parts, dim=1).numpy()


@torch.inference_mode()
def embed(encoder: Encoder, data: MELDataModule, split: str, device: str) -> tuple[Embeddings, Embeddings]:
    """Encode the mentions of a split and the knowledge base.

    The linear projections ``text_global`` and ``image_global`` that the library's encoders put on top of pretrained
    towers start from random weights and would blur what the towers say: they are stepped over. The features of an
    encoder without parts of these names are taken as it returns them.

    Args:
        encoder: The encoder; it is moved to the device.
        data: The data, set up for the split.
        split: ``val`` or ``test``.
        device: Where to compute, as torch calls it.

    Returns:
        Those of the mentions and those of the entities.
    """
    encoder.to(device)
    run = BatchEncoder(encoder, data.processor)
    mentions = data.test_dataloader() if split == "test" else data.val_dataloader()
    with _without_projections(encoder):
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
        return features.text_global[:size], features.image_global[:size]

    for batch, (text, image) in run(loader, side, encode, f"Encoding {side}"):
        with_image += int(batch[side]["has_image"].sum())
        texts.append(normalize(text.float(), dim=-1).cpu())
        images.append(normalize(image.float(), dim=-1).cpu())
    return Embeddings(torch.cat(texts), torch.cat(images), with_image)


@contextmanager
def _without_projections(encoder: Encoder) -> Iterator[None]:
    """Let the encoder's global features through as its towers yield them."""
    projections = {
        name: module
        for name in ("text_global", "image_global")
        if isinstance(module := getattr(encoder, name, None), nn.Linear)
    }
    try:
        for name in projections:
            setattr(encoder, name, nn.Identity())
        yield
    finally:
        for name, module in projections.items():
            setattr(encoder, name, module)
