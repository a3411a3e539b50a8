"""Exact ranking over the whole knowledge base: the entity index and the engine that scans it.

Every evaluation ranks all entities, exactly; no candidates are sampled. The rank of a gold is its place among all
entities, score descending and then order number; a mention whose gold is not in the knowledge base counts as a miss.
A pair is first bounded by a few products, more tightly if that leaves its place open, and scored (with attention)
only if that does, too; near ties are settled in float64. Neither pruning, nor the
size of blocks or batches, nor the number of processes changes a rank.

- :class:`EntityIndex`: the states of all entities, with a string id and an order number each. :class:`MemoryIndex`
  keeps them on a device and grows with ``add``; :class:`LanceIndex` is a folder on disk.
- :class:`IndexBuilder`: builds the index of an evaluation, in a dtype, in the device's or the host's memory or on disk.
- :class:`Ranker`: ranks and top entities of encoded mentions. :func:`explain`: why an entity has its rank.

What evaluation does is set by these options:

======================================  ==========================================================================
``--model.ranker.unit_ranks cheap``     leave out TGLU's own ranks, which need most of the attention that is left
``--model.ranker.prune false``          score every pair: the same ranks, for comparison
``--model.ranker.top_k 20``             how many top entities are kept, for predictions and links
``--model.index.dtype bfloat16``        keep 9.7 kB of an entity instead of 19.3; ``int8`` keeps 5.0, ``int4`` 3.3
``--model.index.storage host``          keep the index in the host's memory, move it to the device block by block
``--model.index.storage disk``          keep it in a folder (``--model.index.folder``), encoded once: ``test`` and
                                        ``predict`` read it, whatever its size
``--model.units.text.init_args.kernel`` ``torch``: no fused Triton kernel on a GPU
======================================  ==========================================================================

An index on disk is a Lance dataset in whose rows a checksum guards the states. A build that is killed resumes with the
same command; a folder of another model or knowledge base is refused.

``mimic-pl benchmark`` measures ranking on your machine, side by side with the published order of operations and with
the machine's own limit (``--run lightning_logs/version_0`` adds that run's model, ``--rows ranking,bytes`` chooses). On
two cores of a server CPU, float32, with models trained on EmojiMEL (1,906 entities) and on RichpediaMEL's text (8,000
of its entities), a pair takes:

============  ===============  =================  ===================  =======================
model         published order  every pair scored  bounded, all ranks   bounded, overall ranks
============  ===============  =================  ===================  =======================
EmojiMEL      38.7 us          3.15 us (12 x)     0.52 us (75 x)       0.40 us (97 x)
RichpediaMEL  39.7 us          3.97 us (10 x)     0.44 us (90 x)       0.43 us (93 x)
============  ===============  =================  ===================  =======================

These figures are from before bounds went in two steps. On another CPU (Sapphire Rapids), with a model that was trained
for four epochs on EmojiMEL and noisy copies up to 40,000 entities: published order 33.4 us, every pair scored 2.46 us
(14 x), all ranks 0.50 us (67 x), overall ranks 0.154 us (217 x), the top ten alone 0.123 us (272 x).

Where only some entities are scored, :func:`challengers` proves by bounds that no other one can be the first.

Example:
    >>> index = model.build_index(entities)  # doctest: +SKIP
    >>> ranking = Ranker(top_k=5)(model.matcher, model.encode_mentions(mentions), index)  # doctest: +SKIP
    >>> index.ids_of(ranking.top_entities[0])  # doctest: +SKIP
"""

from mimic_pl.ranking.builder import IndexBuilder, fingerprint
from mimic_pl.ranking.challengers import Challengers, challengers
from mimic_pl.ranking.engine import Ranker, Ranking
from mimic_pl.ranking.explain import ExplainedScore, Explanation, explain
from mimic_pl.ranking.index import EntityIndex, Shard
from mimic_pl.ranking.lance_index import LanceIndex
from mimic_pl.ranking.memory_index import MemoryIndex
from mimic_pl.ranking.partial_index import PartialIndex, ResidentIndex
from mimic_pl.ranking.quantization import IndexDtype
from mimic_pl.ranking.totals import index_totals

__all__ = [
    "Challengers",
    "EntityIndex",
    "ExplainedScore",
    "Explanation",
    "IndexBuilder",
    "IndexDtype",
    "LanceIndex",
    "MemoryIndex",
    "PartialIndex",
    "Ranker",
    "Ranking",
    "ResidentIndex",
    "Shard",
    "challengers",
    "explain",
    "fingerprint",
    "index_totals",
]
