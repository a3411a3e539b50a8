"""Exact ranking over the whole knowledge base: the entity index and the engine that scans it."""

from mimic_pl.ranking.builder import IndexBuilder, fingerprint
from mimic_pl.ranking.engine import Ranker, Ranking
from mimic_pl.ranking.explain import ExplainedScore, Explanation, explain
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.ranking.lance_index import LanceIndex
from mimic_pl.ranking.memory_index import MemoryIndex
from mimic_pl.ranking.quantization import IndexDtype

__all__ = [
    "EntityIndex",
    "ExplainedScore",
    "Explanation",
    "IndexBuilder",
    "IndexDtype",
    "LanceIndex",
    "MemoryIndex",
    "Ranker",
    "Ranking",
    "Shard",
    "explain",
    "fingerprint",
]
