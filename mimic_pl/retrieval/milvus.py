"""Candidates by Milvus: when one machine is outgrown."""

from __future__ import annotations

from mimic_pl.ranges import COUNT, POSITIVE, in_range, one_of
from mimic_pl.retrieval.candidate_store import VectorStore
from mimic_pl.retrieval.milvus_store import Consistency, MilvusStore
from mimic_pl.retrieval.retriever import DEFAULT_K
from mimic_pl.retrieval.two_channels import TwoChannelRetriever

DEFAULT_URI = "http://127.0.0.1:19530"


class MilvusRetriever(TwoChannelRetriever):
    """Vectors in a Milvus collection, made from the knowledge base and kept in step with it; words by Lance.

    It needs the package of ``pip install "mimic-pl[milvus]"``. The token, or ``user:password``, of a server that asks
    for one is read from the environment variable ``MILVUS_TOKEN``.

    Args:
        k: Candidates per mention and channel; twice as many if only some entities are allowed.
        unit: Unit whose vectors are searched; all units' by default.
        uri: ``http://HOST:19530`` of a server or cluster, or a file, for Milvus Lite in one process.
        collection: Name of the collection; by default made from the folder of the knowledge base.
        index: Milvus's kind of index; ``AUTOINDEX`` leaves the choice to the server.
        effort: Entities that a search of a graph keeps in view, at least k.
        consistency: With ``Strong``, a search sees all writes of all processes before it; weaker levels are faster,
            and may miss the latest changes.
        timeout: Seconds after which a server counts as not reachable.
    """

    @in_range(effort=COUNT, consistency=one_of(Consistency), timeout=POSITIVE)
    def __init__(
        self,
        k: int = DEFAULT_K,
        unit: str | None = None,
        uri: str = DEFAULT_URI,
        collection: str | None = None,
        index: str = "AUTOINDEX",
        effort: int = 200,
        consistency: Consistency = "Strong",
        timeout: float = 60.0,
    ) -> None:
        super().__init__(k, unit)
        self.uri = uri
        self.collection = collection
        self.index = index
        self.effort = effort
        self.consistency: Consistency = consistency
        self.timeout = timeout

    def _vector_store(self, width: int) -> VectorStore:
        return MilvusStore(
            self.knowledge_base.folder,
            width,
            self.uri,
            self.collection,
            self.index,
            self.effort,
            self.consistency,
            self.timeout,
        )
