"""Exact ranking over the whole knowledge base: the entity index and the engine that streams over it."""

from mimic_pl.ranking.disk import DiskIndex
from mimic_pl.ranking.engine import Ranker, Ranking
from mimic_pl.ranking.index import EntityIndex, MemoryIndex, Shard
from mimic_pl.ranking.indexer import Indexer, fingerprint
from mimic_pl.ranking.quantization import IndexDtype

__all__ = [
    "DiskIndex",
    "EntityIndex",
    "IndexDtype",
    "Indexer",
    "MemoryIndex",
    "Ranker",
    "Ranking",
    "Shard",
    "fingerprint",
]
