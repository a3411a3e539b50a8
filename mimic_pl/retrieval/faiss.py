"""Candidates by FAISS: fast, in memory."""

from __future__ import annotations

from mimic_pl.errors import ConfigError
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.remote_path import RemotePath
from mimic_pl.retrieval.candidate_store import VectorStore
from mimic_pl.retrieval.catch_up import FOLDER
from mimic_pl.retrieval.faiss_store import FaissStore
from mimic_pl.retrieval.retriever import DEFAULT_K
from mimic_pl.retrieval.two_channels import TwoChannelRetriever


class FaissRetriever(TwoChannelRetriever):
    """Vectors in a FAISS index in memory, made from the knowledge base and kept in its ``candidates/faiss``.

    It needs the package of ``pip install "mimic-pl[faiss]"``.

    Args:
        k: Candidates per mention and channel; twice as many if only some entities are allowed.
        unit: Unit whose vectors are searched; all units' by default.
        index_from: Entities from which on vectors are in lists of similar ones; fewer are compared one by one.
        probes: Lists that a search looks into.
    """

    @in_range(index_from=COUNT, probes=COUNT)
    def __init__(self, k: int = DEFAULT_K, unit: str | None = None, index_from: int = 20_000, probes: int = 32) -> None:
        super().__init__(k, unit)
        self.index_from = index_from
        self.probes = probes

    def _vector_store(self, width: int) -> VectorStore:
        folder = self.knowledge_base.folder / FOLDER / self.store_name
        if isinstance(folder, RemotePath):
            raise ConfigError(
                f"FAISS reads its index from a local folder, not from {folder}. Choose the retriever 'lance', or copy "
                "the knowledge base to this machine."
            )
        return FaissStore(folder, width, self.index_from, self.probes)
