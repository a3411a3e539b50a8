"""Policy ``drop``: training goes without the mentions whose images fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from mimic_pl.data.images import Failure, ImageFolder
from mimic_pl.data.scan import failures, scan


def without_failing(
    pairs: Iterable[tuple[int, str | None, Sequence[tuple[str, ...]]]],
    mention_images: ImageFolder,
    entity_images: ImageFolder,
) -> tuple[list[int], list[Failure]]:
    """Find those whose own image opens, and one of their gold entity's; of each one's, if there are several.

    A mention or entity that names no image at all does not fail.

    Args:
        pairs: Of each training mention its index, its image, and for each of its golds the entity's images.
        mention_images: Where the mentions' images lie.
        entity_images: Where the entities' images lie.

    Returns:
        Indices of the mentions that are left, and all images that failed.
    """
    pairs = list(pairs)
    own = scan(mention_images, (name for _, name, _ in pairs if name), "Checking mention images")
    named = itertools.chain.from_iterable(names for _, _, golds in pairs for names in golds)
    theirs = scan(entity_images, named, "Checking entity images")
    left = [
        index
        for index, name, golds in pairs
        if not (name and own[name].failure)
        and not any(names and all(theirs[image].failure for image in names) for names in golds)
    ]
    return left, failures(own) + failures(theirs)
