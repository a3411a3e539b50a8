"""Operations of matrix products, counted by torch while they run."""

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
    """What the matcher computes, beside the encoder.

    Attributes:
        mention: Of a mention alone, once for a block of entities.
        entity: Of an entity alone, once for a block of mentions.
        pair: Of a pair.
    """

    mention: float
    entity: float
    pair: float


@torch.no_grad()
def flops(run: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products, convolutions and attentions that ``run`` does.

    What works number by number (norms, softmax, activations) is not counted.

    Example:
        >>> flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        48
    """
    # Of torch's attention kernels the counter knows some; written out, attention is two products anywhere.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matcher_flops(matcher: Matcher, mentions: Features, entities: Features) -> MatcherFlops:
    """What one mention, one entity and one pair take.

    The operations for M mentions and E entities are a + b M + c E + d M E: counted for the whole and for the half of
    either side, they give b, c and d exactly.

    Args:
        matcher: On the CPU: fused kernels of GPUs do not tell what they compute.
        mentions: Features of two or more mentions.
        entities: Features of two or more entities.
    """

    def count(asked: int, known: int) -> int:
        sides = mentions.rows(slice(asked)), entities.rows(slice(known))
        return flops(lambda: matcher.score(matcher.mention(sides[0]), matcher.entity(sides[1])))

    more, many = len(mentions.text_global), len(entities.text_global)
    few, some = more // 2, many // 2
    both, half_asked, half_known, halves = count(more, many), count(few, many), count(more, some), count(few, some)
    pair = (both - half_asked - half_known + halves) / ((more - few) * (many - some))
    return MatcherFlops(
        mention=(both - half_asked) / (more - few) - pair * many,
        entity=(both - half_known) / (many - some) - pair * more,
        pair=pair,
    )


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
