"""FLOPs of matrix products, counted by torch during execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mimic_pl.features import Features
from mimic_pl.units import Matcher


class MatcherFlops(NamedTuple):
    """FLOPs of the matcher, without the encoder.

    Attributes:
        mention: FLOPs per mention, once per block of entities.
        entity: FLOPs per entity, once per block of mentions.
        pair: FLOPs per pair.
    """

    mention: float
    entity: float
    pair: float


@torch.no_grad()
def flops(run: Callable[[], object]) -> int:
    """Count multiplications and additions of the matrix products, convolutions and attentions in ``run``.

    Elementwise operations, norms and softmax are not counted.

    Example:
        >>> flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        48
    """
    # The counter supports only some of torch's attention kernels; the math backend always uses two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matcher_flops(matcher: Matcher, mentions: Features, entities: Features) -> MatcherFlops:
    """FLOPs per mention, per entity and per pair.

    M mentions and E entities take a + b M + c E + d M E operations; counts for all and for half of each side determine
    b, c and d exactly.

    Args:
        matcher: The matcher, on the CPU: operations of fused GPU kernels cannot be counted.
        mentions: Features of two or more mentions.
        entities: Features of two or more entities.
    """

    def count(num_mentions: int, num_entities: int) -> int:
        sides = mentions.rows(slice(num_mentions)), entities.rows(slice(num_entities))
        return flops(lambda: matcher.score(matcher.mention(sides[0]), matcher.entity(sides[1])))

    m, e = len(mentions.text_global), len(entities.text_global)
    half_m, half_e = m // 2, e // 2
    full, fewer_mentions, fewer_entities = count(m, e), count(half_m, e), count(m, half_e)
    pair = (full - fewer_mentions - fewer_entities + count(half_m, half_e)) / ((m - half_m) * (e - half_e))
    return MatcherFlops(
        mention=(full - fewer_mentions) / (m - half_m) - pair * e,
        entity=(full - fewer_entities) / (e - half_e) - pair * m,
        pair=pair,
    )


def parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
