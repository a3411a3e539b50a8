"""Attention of the units: TGLU's to the mention's tokens, CMFU's to the patches of its image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mimic_pl.features import Features
from mimic_pl.units import CMFU, TGLU, Matcher


class Token(NamedTuple):
    """A token of a mention's text, or all of its padding.

    Attributes:
        text: Text to show.
        weight: Attention weight.
        kind: ``word``, ``special`` (start, end) or ``padding``.
    """

    text: str
    weight: float
    kind: Literal["word", "special", "padding"] = "word"


class Patches(NamedTuple):
    """Attention over an image.

    Attributes:
        grid: Weight of each patch, ``[rows, rows]``, from the top left.
        rest: Total weight of tokens that are not patches (CLS).
    """

    grid: Tensor
    rest: float


@torch.no_grad()
def over_words(matcher: Matcher, mentions: Features, entities: Features) -> Tensor | None:
    """Attention of entities' texts to mentions' tokens in aligned pairs, averaged over the entities' tokens.

    Args:
        matcher: Its first TGLU is used.
        mentions: Normed features of mentions.
        entities: Normed features of as many entities.

    Returns:
        ``[pairs, mention tokens]``, rows that sum to 1; None if the model has no TGLU.
    """
    unit = next((unit for _, unit in matcher.named_units() if isinstance(unit, TGLU)), None)
    return None if unit is None else unit.attention(unit.mention(mentions), unit.entity(entities)).float().cpu()


@torch.no_grad()
def over_patches(matcher: Matcher, mentions: Features) -> list[Patches] | None:
    """Attention of mentions' texts to their images; None if the model has no CMFU.

    Args:
        matcher: Its first CMFU is used.
        mentions: Normed features of mentions.
    """
    unit = next((unit for _, unit in matcher.named_units() if isinstance(unit, CMFU)), None)
    return None if unit is None else [split_patches(row) for row in unit.attention(mentions).float().cpu()]


def split_patches(weights: Tensor) -> Patches:
    """Separate patches from other tokens: the last r x r tokens are a square of patches.

    Args:
        weights: Weights of an image's tokens, ``[image_tokens]``.

    Example:
        >>> split_patches(torch.full((50,), 0.02)).grid.shape
        torch.Size([7, 7])
    """
    rows = math.isqrt(len(weights))
    others = len(weights) - rows * rows
    return Patches(weights[others:].view(rows, rows), float(weights[:others].sum()))


def tokens_of(tokenizer: Any, ids: Sequence[int], mask: Sequence[int], weights: Sequence[float]) -> list[Token]:
    """Tokens of a text with their weights; padding, to which the published model attends too, is merged into one.

    Args:
        tokenizer: A transformers tokenizer.
        ids: Token ids of the text, ``[text_tokens]``.
        mask: 1 for a token, 0 for padding.
        weights: Attention weights.
    """
    special = set(tokenizer.all_special_ids)
    found = []
    for id_, real, weight in zip(ids, mask, weights, strict=True):
        if real:
            text = tokenizer.decode([id_]).strip() or tokenizer.convert_ids_to_tokens(id_)
            found.append(Token(text, weight, "special" if id_ in special else "word"))
    padding = [weight for real, weight in zip(mask, weights, strict=True) if not real]
    if padding:
        found.append(Token(f"padding × {len(padding)}", sum(padding), "padding"))
    return found
