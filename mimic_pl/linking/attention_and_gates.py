"""What units attend to, TGLU to the tokens of the mention and CMFU to the patches of its image; and their gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mimic_pl.features import Features
from mimic_pl.linking.encoded import Encoded
from mimic_pl.model import MIMIC
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
def over_words(model: MIMIC, mentions: Encoded, entities: Encoded) -> list[list[Token]]:
    """Attention of entities' texts to mentions' tokens in aligned pairs, averaged over the entities' tokens.

    Args:
        model: Its first TGLU is used.
        mentions: Encoded mentions.
        entities: As many encoded entities.

    Returns:
        Tokens of each mention, whose weights sum to 1; none if the model has no TGLU.
    """
    unit = next((unit for _, unit in model.matcher.named_units() if isinstance(unit, TGLU)), None)
    if unit is None:
        return [[] for _ in mentions.input_ids]
    weights = unit.attention(unit.mention(mentions.features), unit.entity(entities.features)).float().cpu()
    rows = zip(mentions.input_ids, mentions.attention_mask, weights, strict=True)
    tokenizer = model.processor.tokenizer.tokenizer
    return [tokens_of(tokenizer, ids.tolist(), mask.tolist(), own.tolist()) for ids, mask, own in rows]


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


@torch.no_grad()
def pair_gates(matcher: Matcher, mentions: Features, entities: Features) -> dict[str, Tensor]:
    """Gate values of aligned pairs.

    Args:
        matcher: Its units have the gates.
        mentions: Normed features of mentions.
        entities: Normed features of as many entities.

    Returns:
        Values by unit and gate (``vision, entity to mention``), float32 ``[pairs]`` on the CPU; empty if no unit has a
        gate.
    """
    found = {}
    for name, unit in matcher.named_units():
        for gate, values in unit.gates(mentions, entities).items():
            # Aligned pairs are on the diagonal; a one-sided gate is a vector already.
            own = values.diagonal() if values.ndim == 2 else values
            found[f"{name}, {gate.replace('_', ' ')}"] = own.float().cpu()
    return found
