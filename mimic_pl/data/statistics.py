"""What a paper reports of a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedStatistics:
    """What the MIMIC paper reports of a data set.

    Attributes:
        mentions: Mentions by split (``train``, ``val``, ``test``).
        entities: Entities of the knowledge base.
        test: MIMIC's results on the test split: ``hits@1``, ``hits@3``, ``hits@5``, ``mrr`` as shares, ``mr`` in ranks.
    """

    mentions: dict[str, int]
    entities: int
    test: dict[str, float]
