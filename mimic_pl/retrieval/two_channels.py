"""Retrieval in two channels, by vectors and by words, whose union is scored."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mimic_pl.ranking.engine import in_float32
from mimic_pl.retrieval.candidate_store import VectorStore
from mimic_pl.retrieval.catch_up import FOLDER, KeyVectors, catch_up
from mimic_pl.retrieval.lance_store import TEXT, LanceStore
from mimic_pl.retrieval.retriever import DEFAULT_K, Allowed, Queries, Retriever

_MORE = 2
"""How many times as many candidates are found if only some entities are allowed. The best of these is seldom far ahead
of the others, and is found late by vectors, which stand for the score in part only."""


class TwoChannelRetriever(Retriever):
    """The nearest k entities by the inner product of vectors, and as many by words.

    - **Vectors**: what of the overall score is an inner product (:meth:`~mimic_pl.units.Matcher.query_vectors`), or one
      unit's vectors.
    - **Words**: half of k by BM25 of the mentioned words over the entities' names, and half by BM25 of the mention's
      text over the entities' texts, both by Lance's full-text index.

    The searches run side by side. A subclass has the vectors in an engine of its choice.

    Args:
        k: Candidates per mention and channel; twice as many if only some entities are allowed.
        unit: Unit whose vectors are searched, such as a :class:`~mimic_pl.units.CompactVector`; all units' by default.
    """

    _vectors: VectorStore
    _texts: LanceStore

    def __init__(self, k: int = DEFAULT_K, unit: str | None = None) -> None:
        super().__init__(k)
        self.unit = unit

    @abstractmethod
    def _vector_store(self, width: int) -> VectorStore:
        """Open the store of the vectors, whatever version it is at."""

    @property
    def store_name(self) -> str:
        """Name of the store of the vectors."""
        return type(self).__name__.removesuffix("Retriever").lower()

    def _open(self) -> None:
        kb, vectors = self.knowledge_base, KeyVectors(self.model, self.unit)
        width = vectors(kb, kb.index.order[:1]).shape[1] if len(kb) else 0
        self._vectors = self._vector_store(width)
        if width or isinstance(self._vectors, LanceStore):
            catch_up(self._vectors, kb, vectors, self.store_name)
        if isinstance(self._vectors, LanceStore):
            self._texts = self._vectors
        else:
            self._texts = LanceStore(kb.folder / FOLDER / "texts", 0)
            catch_up(self._texts, kb, KeyVectors(self.model), "texts")

    @torch.no_grad()
    def _search(self, mentions: Queries, k: int, allowed: Allowed | None) -> list[Tensor]:
        if allowed is not None:
            k *= _MORE
        half = -(-k // 2)
        # The engines search outside of Python's lock.
        with ThreadPoolExecutor(2) as pool:
            words = [
                pool.submit(self._texts.matching, "name", mentions.names, half, allowed),
                pool.submit(self._texts.matching, TEXT, mentions.texts, half, allowed),
            ]
            channels = []
            if self._vectors.width:
                vectors = in_float32(self.model.matcher).query_vectors(mentions.states, self.unit).float().cpu().numpy()
                channels.append(self._vectors.nearest(vectors, k, allowed))
            channels += [search.result() for search in words]
        index = self.knowledge_base.index
        union = [torch.unique(torch.cat(found)) for found in zip(*channels, strict=True)]
        # A store at a newer version than a reader of an old one has other entities, too.
        return [found[index.holds(found).cpu()] for found in union]
