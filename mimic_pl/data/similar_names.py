"""Which training mentions may mean each other's golds: put in one batch, the golds are hard negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mimic_pl.processor.words import content_words, term_id


def shared_words(mentions: Sequence[str], names: Sequence[str], most: int) -> list[list[int]]:
    """Ids of the words by which each mention may be taken for others: those of its gold's name that it contains.

    Of a mention with none of them, such as a nickname, all words of the name count.

    Args:
        mentions: The words of each mention.
        names: The name of its gold.
        most: A word of more mentions than this tells little, and is left out.

    Returns:
        For each mention the ids of its words that 2 to ``most`` mentions have, ascending.

    Example:
        >>> ids = shared_words(["Berger", "Helmut Berger", "Plato"], ["Emil Berger", "Helmut Berger", "Plato"], most=10)
        >>> [len(own) for own in ids]
        [1, 1, 0]
    """
    own = []
    for mention, name in zip(mentions, names, strict=True):
        of_name = {*content_words(name)}
        own.append({term_id(word) for word in of_name & {*content_words(mention)} or of_name})
    counts = Counter(id for ids in own for id in ids)
    return [sorted(id for id in ids if 1 < counts[id] <= most) for ids in own]
