"""Exact ranking over the whole knowledge base: the entity index and the engine that streams over it."""

from mimic_pl.ranking.engine import Ranker, Ranking
from mimic_pl.ranking.forms import IndexForm
from mimic_pl.ranking.index import EntityIndex, MemoryIndex

__all__ = ["EntityIndex", "IndexForm", "MemoryIndex", "Ranker", "Ranking"]
