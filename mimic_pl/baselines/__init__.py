"""Baselines without training, with which to compare trained models."""

from mimic_pl.baselines.bm25 import BM25
from mimic_pl.baselines.names import ExactName, NameSimilarity
from mimic_pl.baselines.ranking import BlockScorer, rank_all
from mimic_pl.baselines.run import BASELINES, run_baselines
from mimic_pl.baselines.zero_shot import Cosine, Embeddings, embed

__all__ = [
    "BASELINES",
    "BM25",
    "BlockScorer",
    "Cosine",
    "Embeddings",
    "ExactName",
    "NameSimilarity",
    "embed",
    "rank_all",
    "run_baselines",
]
