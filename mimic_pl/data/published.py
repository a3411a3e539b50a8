"""The three published sets: what the paper says of them, and what their files are called."""

from __future__ import annotations

from dataclasses import dataclass

from mimic_pl.data.datamodule import MELDataModule


@dataclass(frozen=True)
class PublishedStatistics:
    """What the MIMIC paper reports of a data set.

    Attributes:
        mentions: Mentions by split (``train``, ``val``, ``test``).
        entities: Entities of the knowledge base.
        results: MIMIC's test results: ``hits@1``, ``hits@3``, ``hits@5`` and ``mrr`` in percent, ``mr`` in places.
    """

    mentions: dict[str, int]
    entities: int
    results: dict[str, float]


class WikiMEL(MELDataModule):
    """WikiMEL (25,846 mentions, 109,976 entities) in the layout of the MIMIC authors' archive."""

    file_stems = ("WIKIMEL", "WikiMEL")
    published = PublishedStatistics(
        {"train": 18_092, "val": 2_585, "test": 5_169},
        109_976,
        {"hits@1": 87.98, "hits@3": 95.07, "hits@5": 96.37, "mrr": 91.82, "mr": 11.02},
    )


class RichpediaMEL(MELDataModule):
    """RichpediaMEL (17,805 mentions, 160,933 entities) in the layout of the MIMIC authors' archive."""

    file_stems = ("RichpediaMEL",)
    published = PublishedStatistics(
        {"train": 12_463, "val": 1_780, "test": 3_562},
        160_933,
        {"hits@1": 81.02, "hits@3": 91.77, "hits@5": 94.38, "mrr": 86.95, "mr": 55.11},
    )


class WikiDiverse(MELDataModule):
    """WikiDiverse (15,093 mentions, 132,460 entities) in the layout of the MIMIC authors' archive."""

    file_stems = ("wiki_diverse", "WikiDiverse")
    published = PublishedStatistics(
        {"train": 11_351, "val": 1_664, "test": 2_078},
        132_460,
        {"hits@1": 63.51, "hits@3": 81.04, "hits@5": 86.43, "mrr": 73.44, "mr": 227.08},
    )
