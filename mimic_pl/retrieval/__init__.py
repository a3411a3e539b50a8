"""Retrieval of candidates: which entities are scored, and the second look at the first of them.

By default all entities are scored. For millions, a :class:`Retriever` finds those that are worth it:

    >>> linker = Linker.from_knowledge_base("my_kb").with_retriever("lance", k=200)  # doctest: +SKIP

It searches in two channels, whose union is scored in full: the nearest neighbours by what of the score is an inner
product, and BM25 over names and texts. What it searches in is derived from the knowledge base, kept beside it in the
folder ``candidates``, follows every change by comparing checksums, and may be deleted at any time.

===================================  =================================================================================
:class:`ExactRetriever` ``exact``    everything is ranked: the default
:class:`LanceRetriever` ``lance``    Lance's vector and full-text indexes; nothing else to install
:class:`FaissRetriever` ``faiss``    vectors in memory by FAISS (``pip install "mimic-pl[faiss]"``), words by Lance
:class:`MilvusRetriever` ``milvus``  vectors in a Milvus server or cluster (``pip install "mimic-pl[milvus]"``), words
                                     by Lance
===================================  =================================================================================

``mimic-pl recall`` measures how often the first entity of the exact ranking is found, and chooses k.

The entities that were found are ranked by states that were computed of each side alone. A reranker sees a mention and
its first candidates together, and orders them anew:

    >>> from mimic_pl import Linker
    >>> reranker = CrossEncoder.from_pretrained("cross_encoder")  # doctest: +SKIP
    >>> linker = Linker.from_pretrained("lightning_logs/version_0", reranker=reranker)  # doctest: +SKIP

- :class:`Retriever`, :func:`retriever_of`: candidates; :class:`CandidateStore`: what an engine must do to hold them.
- :class:`Reranker`: any function of a mention and its candidates, with a language model as an example;
  :func:`rerank` sorts by it.
- :class:`CrossEncoder`: the reranker of this package, a text model that reads mention and entity side by side, as
  BLINK's second stage does (Wu et al., EMNLP 2020).
- :class:`CrossEncoderModule` and :class:`CandidateListData`: its training with Lightning's Trainer, on the
  :class:`CandidateLists` of a trained first stage. ``mimic-pl train-reranker --run RUN --config
  cli_configs/recipes/cross_encoder.yaml`` makes the lists, trains, and writes the cross-encoder and its results into
  the run's folder.
"""

from mimic_pl.retrieval.candidate_store import CandidateStore, VectorStore
from mimic_pl.retrieval.candidates import CandidateLists, first_stage_lists
from mimic_pl.retrieval.cross_encoder import CrossEncoder
from mimic_pl.retrieval.cross_encoder_module import CrossEncoderModule
from mimic_pl.retrieval.engines import retriever_of
from mimic_pl.retrieval.exact import ExactRetriever
from mimic_pl.retrieval.faiss import FaissRetriever
from mimic_pl.retrieval.lance import LanceRetriever
from mimic_pl.retrieval.list_data import CandidateListData
from mimic_pl.retrieval.milvus import MilvusRetriever
from mimic_pl.retrieval.reranker import Reranker, rerank
from mimic_pl.retrieval.retriever import Allowed, Queries, Retriever
from mimic_pl.retrieval.two_channels import TwoChannelRetriever

__all__ = [
    "Allowed",
    "CandidateListData",
    "CandidateLists",
    "CandidateStore",
    "CrossEncoder",
    "CrossEncoderModule",
    "ExactRetriever",
    "FaissRetriever",
    "LanceRetriever",
    "MilvusRetriever",
    "Queries",
    "Reranker",
    "Retriever",
    "TwoChannelRetriever",
    "VectorStore",
    "first_stage_lists",
    "rerank",
    "retriever_of",
]
