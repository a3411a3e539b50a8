"""Policy ``drop``: training goes without the mentions whose pictures fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from mimic_pl.data.pictures import Failure, PictureFolder
from mimic_pl.data.scan import failures, scan


def without_failing(
    pairs: Iterable[tuple[int, str | None, tuple[str, ...]]],
    mention_pictures: PictureFolder,
    entity_pictures: PictureFolder,
) -> tuple[list[int], list[Failure]]:
    """Find those whose own picture opens, and one of their gold entity's.

    A mention or entity that names no picture at all does not fail.

    Args:
        pairs: Of each training mention its index, its picture, and the pictures of its gold entity.
        mention_pictures: Where the mentions' pictures lie.
        entity_pictures: Where the entities' pictures lie.

    Returns:
        Indices of the mentions that are left, and all pictures that failed.
    """
    pairs = list(pairs)
    own = scan(mention_pictures, (name for _, name, _ in pairs if name), "Checking mention pictures")
    golds = scan(entity_pictures, itertools.chain(*(names for _, _, names in pairs)), "Checking entity pictures")
    left = [
        index
        for index, name, gold_names in pairs
        if not (name and own[name].failure) and not (gold_names and all(golds[gold].failure for gold in gold_names))
    ]
    return left, failures(own) + failures(golds)
