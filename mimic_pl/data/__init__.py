"""Data modules: raw files -> records -> batches."""

from mimic_pl.data.cross import CrossDataModule
from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.data.demo import DemoMEL
from mimic_pl.data.published_datasets import RichpediaMEL, WikiDiverse, WikiMEL
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.processor.lexicon import BM25Lexicon
from mimic_pl.records import Entity, Mention

__all__ = [
    "BM25Lexicon",
    "CrossDataModule",
    "DemoMEL",
    "Entity",
    "MELDataModule",
    "Mention",
    "PublishedStatistics",
    "RichpediaMEL",
    "WikiDiverse",
    "WikiMEL",
]
