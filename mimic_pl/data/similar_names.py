"""Which training mentions have golds with similar names: put in one batch, they are each other's hard negatives."""

from __future__ import annotations

from collections.abc import Sequence

from mimic_pl.processor.words import content_words, term_id


def shared_words(names: Sequence[str], most: int) -> list[list[int]]:
    """Ids of the words that each name shares with others.

    Args:
        names: A name per item.
        most: Words of more names than this tell little, and are left out.

    Returns:
        For each name the ids of its words that 2 to ``most`` names have, ascending.

    Example:
        >>> [len(ids) for ids in shared_words(["Emil Berger", "Helmut Berger", "Plato"], most=10)]
        [1, 1, 0]
    """
    own = [{term_id(word) for word in content_words(name)} for name in names]
    counts: dict[int, int] = {}
    for ids in own:
        for id in ids:
            counts[id] = counts.get(id, 0) + 1
    return [sorted(id for id in ids if 1 < counts[id] <= most) for ids in own]
