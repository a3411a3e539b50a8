"""Exact ranking over the whole knowledge base: the entity index and the engine that streams over it."""

from mimic_pl.ranking.disk import DiskIndex
from mimic_pl.ranking.engine import Ranker, Ranking
from mimic_pl.ranking.forms import IndexForm
from mimic_pl.ranking.index import EntityIndex, MemoryIndex, Share
from mimic_pl.ranking.indexer import Indexer, fingerprint

__all__ = [
    "DiskIndex",
    "EntityIndex",
    "IndexForm",
    "Indexer",
    "MemoryIndex",
    "Ranker",
    "Ranking",
    "Share",
    "fingerprint",
]
