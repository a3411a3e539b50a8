"""Published statistics of a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedStatistics:
    """Statistics and results of a data set, as published in the MIMIC paper.

    Attributes:
        mentions: Number of mentions by split (``train``, ``val``, ``test``).
        entities: Number of entities in the knowledge base.
        test: MIMIC's results on the test split: ``hits@1``, ``hits@3``, ``hits@5``, ``mrr`` in [0, 1], ``mr`` in ranks.
    """

    mentions: dict[str, int]
    entities: int
    test: dict[str, float]
