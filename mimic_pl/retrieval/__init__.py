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

The vectors are those of all units, side by side. A model with a :class:`~mimic_pl.units.CompactVector`
(``cli_configs/recipes/compact.yaml``) has one of 128 numbers that stands for the overall score, and ``unit`` says so:

    >>> linker = linker.with_retriever(LanceRetriever(k=200, unit="compact"))  # doctest: +SKIP

or, in a file for ``--retriever``, ``engine: lance`` and ``unit: compact``.

``mimic-pl recall`` measures how often the first entity of the exact ranking is found, and chooses k. ``link --certify``
proves for single links that nothing better was missed (:func:`mimic_pl.ranking.challengers`), by a pass of bounds over
all entities.

What a large knowledge base takes, by arithmetic, with the units and widths of the published model (vectors of 896
numbers) and without images and texts:

==============================================  ============  ==========  ==========  ===========
part                                            an entity     10^6        10^7        10^8
==============================================  ============  ==========  ==========  ===========
states in 8 bits, on disk                       5.0 kB        5.0 GB      50 GB       500 GB
states in 4 bits, on disk                       3.3 kB        3.3 GB      33 GB       330 GB
vectors, on disk, or Milvus's object storage    3.6 kB        3.6 GB      36 GB       360 GB
the same of a compact vector                    0.5 kB        0.5 GB      5 GB        51 GB
Milvus in memory, HNSW, float32                 3.9 kB        3.9 GB      39 GB       390 GB
Milvus in memory, IVF_SQ8; FAISS in memory      0.9 kB        0.9 GB      9 GB        90 GB
encoding at 1,000 entities a second             1 ms          17 min      2.8 h       28 h
==============================================  ============  ==========  ==========  ===========

So one machine holds 10^7 with Lance or FAISS; for 10^8, a Milvus cluster whose query nodes have 100 to 400 GB of memory
together, and a disk or object storage of half a terabyte for the states.

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
