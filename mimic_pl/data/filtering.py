"""Image policy ``drop``: excludes mentions with failing images from training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from mimic_pl.batch import ImageFailure
from mimic_pl.data.image_scan import failures, scan
from mimic_pl.processor.images import ImageFolder


def with_usable_images(
    pairs: Iterable[tuple[int, tuple[str, ...], Sequence[tuple[str, ...]]]],
    mention_images: ImageFolder,
    entity_images: ImageFolder,
) -> tuple[list[int], list[ImageFailure]]:
    """Find the mentions whose image opens, and for each of whose golds at least one image opens.

    A mention or entity without any image does not fail.

    Args:
        pairs: For each training mention its index, its image if it has one, and the images of each of its golds.
        mention_images: Folder of the mentions' images.
        entity_images: Folder of the entities' images.

    Returns:
        Indices of the remaining mentions, and all images that failed.
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
