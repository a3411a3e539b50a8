"""Candidates by Lance, the engine of the knowledge base: nothing else to install."""

from __future__ import annotations

from mimic_pl.ranges import COUNT, in_range, one_of
from mimic_pl.retrieval.candidate_store import VectorStore
from mimic_pl.retrieval.catch_up import FOLDER
from mimic_pl.retrieval.lance_store import LanceStore, VectorIndex
from mimic_pl.retrieval.retriever import DEFAULT_K
from mimic_pl.retrieval.two_channels import TwoChannelRetriever


class LanceRetriever(TwoChannelRetriever):
    """Vectors and words in a Lance dataset in the folder of the knowledge base, ``candidates/lance``.

    Args:
        k: Candidates per mention and channel; twice as many if only some entities are allowed.
        unit: Unit whose vectors are searched; all units' by default.
        index: Lance's kind of index. ``IVF_RQ``, lists of vectors with some bits a number, finds as much as
            ``IVF_HNSW_SQ``, a graph, and is built in half of the time.
        index_from: Entities from which on vectors and types are indexed; fewer are compared one by one.
        probes: Partitions that a search looks into; more if few entities are allowed.
        effort: Entities that a search of a graph keeps in view, at least k.
    """

    @in_range(index=one_of(VectorIndex), index_from=COUNT, probes=COUNT, effort=COUNT)
    def __init__(
        self,
        k: int = DEFAULT_K,
        unit: str | None = None,
        index: VectorIndex = "IVF_RQ",
        index_from: int = 20_000,
        probes: int = 256,
        effort: int = 200,
    ) -> None:
        super().__init__(k, unit)
        self.index: VectorIndex = index
        self.index_from = index_from
        self.probes = probes
        self.effort = effort

    def _vector_store(self, width: int) -> VectorStore:
        folder = self.knowledge_base.folder / FOLDER / self.store_name
        return LanceStore(folder, width, self.index, self.index_from, self.probes, self.effort)
