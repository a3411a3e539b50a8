"""Fractions and folds of the training split, and the golds seen in training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from mimic_pl.records import Mention

SEEN, UNSEEN, NO_GOLD = 1, 0, -1
"""Results of :func:`seen_in_training`."""


def seeded_fraction(mentions: Sequence[Mention], fraction: float, seed: int) -> list[Mention]:
    """A random subset of the training mentions, for low-resource experiments.

    Subsets are nested: a tenth is contained in a fifth. They depend only on the arguments, and keep the order of the
    file.

    Args:
        mentions: All training mentions.
        fraction: Size of the subset, above 0 and at most 1; at least one mention is kept.
        seed: Random seed.
    """
    count = max(1, round(fraction * len(mentions)))
    if count >= len(mentions):
        return list(mentions)
    order = list(range(len(mentions)))
    random.Random(seed).shuffle(order)
    return [mentions[index] for index in sorted(order[:count])]


def seeded_fold(mentions: Sequence[Mention], fold: int, folds: int, seed: int) -> tuple[list[Mention], list[Mention]]:
    """Divide training mentions at random into folds of equal size, for cross-fitting.

    The folds depend only on the arguments, and keep the order of the file.

    Args:
        mentions: All training mentions.
        fold: Number of the fold, from 0.
        folds: Number of folds.
        seed: Random seed.

    Returns:
        The mentions of the other folds, and those of this one.
    """
    order = list(range(len(mentions)))
    random.Random(seed).shuffle(order)
    own = {*order[fold * len(order) // folds : (fold + 1) * len(order) // folds]}
    others = [mention for index, mention in enumerate(mentions) if index not in own]
    return others, [mention for index, mention in enumerate(mentions) if index in own]


def golds_of(mentions: Iterable[Mention]) -> frozenset[str]:
    """``id`` of every gold of these mentions."""
    return frozenset(gold for mention in mentions for gold in mention.golds)


def seen_in_training(mention: Mention, seen: frozenset[str]) -> int:
    """Whether one of a mention's golds was a gold in training: :data:`SEEN`, :data:`UNSEEN`, or :data:`NO_GOLD`."""
    if not mention.golds:
        return NO_GOLD
    return UNSEEN if seen.isdisjoint(mention.golds) else SEEN
