"""Policy ``drop``: training goes without the mentions whose pictures fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from mimic_pl.data.pictures import Failure, PictureFolder
from mimic_pl.data.scan import failures, scan


def without_failing(
    pairs: Iterable[tuple[int, str | None, Sequence[tuple[str, ...]]]],
    mention_pictures: PictureFolder,
    entity_pictures: PictureFolder,
) -> tuple[list[int], list[Failure]]:
    """Find those whose own picture opens, and one of their gold entity's; of each one's, if there are several.

    A mention or entity that names no picture at all does not fail.

    Args:
        pairs: Of each training mention its index, its picture, and for each of its golds the entity's pictures.
        mention_pictures: Where the mentions' pictures lie.
        entity_pictures: Where the entities' pictures lie.

    Returns:
        Indices of the mentions that are left, and all pictures that failed.
    """
    pairs = list(pairs)
    own = scan(mention_pictures, (name for _, name, _ in pairs if name), "Checking mention pictures")
    named = itertools.chain.from_iterable(names for _, _, golds in pairs for names in golds)
    theirs = scan(entity_pictures, named, "Checking entity pictures")
    left = [
        index
        for index, name, golds in pairs
        if not (name and own[name].failure)
        and not any(names and all(theirs[picture].failure for picture in names) for names in golds)
    ]
    return left, failures(own) + failures(theirs)
