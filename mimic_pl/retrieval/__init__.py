"""Retrieval of candidates: the second look at those of the first stage.

The first stage ranks all entities by states that were computed of each side alone. A reranker sees a mention and its
first candidates together, and orders them anew:

    >>> from mimic_pl import Linker
    >>> reranker = CrossEncoder.from_pretrained("cross_encoder")  # doctest: +SKIP
    >>> linker = Linker.from_pretrained("lightning_logs/version_0", reranker=reranker)  # doctest: +SKIP

- :class:`Reranker`: any function of a mention and its candidates, with a language model as an example;
  :func:`rerank` sorts by it.
- :class:`CrossEncoder`: the reranker of this package, a text model that reads mention and entity side by side, as
  BLINK's second stage does (Wu et al., EMNLP 2020).
- :class:`CrossEncoderModule` and :class:`CandidateListData`: its training with Lightning's Trainer, on the
  :class:`CandidateLists` of a trained first stage. ``mimic-pl train-reranker --run RUN --config
  cli_configs/recipes/cross_encoder.yaml`` makes the lists, trains, and writes the cross-encoder and its results into
  the run's folder.
"""

from mimic_pl.retrieval.candidates import CandidateLists, first_stage_lists
from mimic_pl.retrieval.cross_encoder import CrossEncoder
from mimic_pl.retrieval.cross_encoder_module import CrossEncoderModule
from mimic_pl.retrieval.list_data import CandidateListData
from mimic_pl.retrieval.reranker import Reranker, rerank

__all__ = [
    "CandidateListData",
    "CandidateLists",
    "CrossEncoder",
    "CrossEncoderModule",
    "Reranker",
    "first_stage_lists",
    "rerank",
]
