"""Policy ``drop``: training goes without the mentions whose images fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from mimic_pl.batch import ImageFailure
from mimic_pl.data.image_scan import failures, scan
from mimic_pl.processor.images import ImageFolder


def without_failing(
    pairs: Iterable[tuple[int, tuple[str, ...], Sequence[tuple[str, ...]]]],
    mention_images: ImageFolder,
    entity_images: ImageFolder,
) -> tuple[list[int], list[ImageFailure]]:
    """Find those whose own image opens, and one of their gold entity's; of each one's, if there are several.

    A mention or entity that names no image at all does not fail.

    Args:
        pairs: Of each training mention its index, its image if it has one, and the images of each of its golds.
        mention_images: Where the mentions' images lie.
        entity_images: Where the entities' images lie.

    Returns:
        Indices of the mentions that are left, and all images that failed.
    """
    pairs = list(pairs)
    own = scan(mention_images, (name for _, names, _ in pairs for name in names), "Checking mention images")
    named = itertools.chain.from_iterable(names for _, _, golds in pairs for names in golds)
    theirs = scan(entity_images, named, "Checking entity images")
    left = [
        index
        for index, names_of_mention, golds in pairs
        if not any(own[name].failure for name in names_of_mention)
        and not any(names and all(theirs[image].failure for image in names) for names in golds)
    ]
    return left, failures(own) + failures(theirs)
