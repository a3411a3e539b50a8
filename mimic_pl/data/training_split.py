"""Which mentions a run trains on, and which golds it has therefore seen."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from mimic_pl.errors import ConfigError
from mimic_pl.records import Mention

SEEN, UNSEEN, NO_GOLD = 1, 0, -1
"""What :func:`seen_in_training` says of a mention."""


def seeded_fraction(mentions: Sequence[Mention], fraction: float, seed: int) -> list[Mention]:
    """A part of the training mentions, for runs with few of them.

    The parts are nested: those of a tenth are among those of a fifth. They depend on nothing but the arguments, and
    stay in the order of the file.

    Args:
        mentions: All training mentions.
        fraction: How many of them, above 0 and at most 1; at least one mention is taken.
        seed: Decides which.
    """
    count = max(1, round(fraction * len(mentions)))
    if count >= len(mentions):
        return list(mentions)
    order = list(range(len(mentions)))
    random.Random(seed).shuffle(order)
    return [mentions[index] for index in sorted(order[:count])]


def require_fraction(fraction: float) -> None:
    """Refuse what is no fraction.

    Raises:
        ConfigError: It is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"data.train_fraction is {fraction}; it must be above 0 and at most 1: 0.1 for a tenth.")


def golds_of(mentions: Iterable[Mention]) -> frozenset[str]:
    """``id`` of every gold of these mentions."""
    return frozenset(gold for mention in mentions for gold in mention.golds)


def seen_in_training(mention: Mention, seen: frozenset[str]) -> int:
    """Whether one of a mention's golds was a gold in training: :data:`SEEN`, :data:`UNSEEN`, or :data:`NO_GOLD`."""
    if not mention.golds:
        return NO_GOLD
    return UNSEEN if seen.isdisjoint(mention.golds) else SEEN
