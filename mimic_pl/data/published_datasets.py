"""The three published data sets, with their statistics and file names."""

from __future__ import annotations

from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.data.statistics import PublishedStatistics


class WikiMEL(MELDataModule):
    """WikiMEL (25,846 mentions, 109,976 entities) in the layout of the MIMIC authors' archive."""

    file_stems = ("WIKIMEL", "WikiMEL")
    published = PublishedStatistics(
        {"train": 18_092, "val": 2_585, "test": 5_169},
        109_976,
        {"hits@1": 0.8798, "hits@3": 0.9507, "hits@5": 0.9637, "mrr": 0.9182, "mr": 11.02},
    )


class RichpediaMEL(MELDataModule):
    """RichpediaMEL (17,805 mentions, 160,933 entities) in the layout of the MIMIC authors' archive."""

    file_stems = ("RichpediaMEL",)
    published = PublishedStatistics(
        {"train": 12_463, "val": 1_780, "test": 3_562},
        160_933,
        {"hits@1": 0.8102, "hits@3": 0.9177, "hits@5": 0.9438, "mrr": 0.8695, "mr": 55.11},
    )


class WikiDiverse(MELDataModule):
    """WikiDiverse (15,093 mentions, 132,460 entities) in the layout of the MIMIC authors' archive."""

    file_stems = ("wiki_diverse", "WikiDiverse")
    published = PublishedStatistics(
        {"train": 11_351, "val": 1_664, "test": 2_078},
        132_460,
        {"hits@1": 0.6351, "hits@3": 0.8104, "hits@5": 0.8643, "mrr": 0.7344, "mr": 227.08},
    )
