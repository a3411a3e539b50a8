"""Exact ranking over the whole knowledge base: the entity index and the engine that streams over it."""

from mimic_pl.ranking.engine import SMALLEST_BLOCK, Ranker, Ranking
from mimic_pl.ranking.index import EntityIndex

__all__ = ["SMALLEST_BLOCK", "EntityIndex", "Ranker", "Ranking"]
