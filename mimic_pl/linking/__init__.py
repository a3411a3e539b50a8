"""Linking mentions to the entities of a knowledge base, and explaining the links.

:class:`Linker` has a model and a knowledge base, and does the rest: it indexes entities, links mentions, changes the
knowledge base and explains links.

- **Model.** ``Linker.from_pretrained`` takes the folder of a training run, a checkpoint, an exported folder or a name
  on the hub; ``Linker.zero_shot`` needs no training: see :func:`zero_shot_model`; :func:`whiten`, which adapts it to a
  knowledge base; and :func:`center_mentions` and :func:`fit_zero_shot`, to mentions without and with labels.
- **Knowledge base.** ``linker.index(file_or_records, folder)`` encodes all entities; ``add_entities``,
  ``update_entities`` and ``delete_entities`` change them. Only a linker with the weights, the templates and the
  settings that a knowledge base was built with can use it; ``Linker.from_knowledge_base(folder)`` finds that one.
- **Drift.** What depends on all entities changes with them, exactly, and never causes an entity to be encoded again:
  BM25's document frequencies and the means of centred units are sums of whole numbers, part of no entity's states.
  Only BM25's mean length stays that of the first indexing. Once the real one is off by more than a fifth, ``mimic-pl
  kb info`` and every linker that opens the knowledge base advise to index it again.
- **Mentions.** ``linker.link`` takes one record or a list, ``linker.link_stream`` a file or an iterator of any length.
- **Probabilities.** A run that was calibrated (``mimic-pl calibrate``) gives them, also that of NIL. For any other
  model, or with a reranker, fit them to links of mentions with golds that the model was not trained on:
  ``ScoredLists.of_links`` takes their scores, and which candidates are golds (``Mention.golds``, ids). A mention
  without golds is a NIL case; the golds of the others must be in the knowledge base. More NIL cases are had by taking
  these golds out of the lists, so link with the calibration's ``top_k`` plus the largest number of golds:

    >>> from mimic_pl.calibration import ScoredLists, fit_calibration
    >>> found = linker.link(mentions, top_k=10 + 1)  # of mentions with one gold  # doctest: +SKIP
    >>> calibration = fit_calibration(ScoredLists.of_links(found), top_k=10)  # doctest: +SKIP
    >>> linker = Linker(linker.model, linker.knowledge_base, calibration, linker.reranker)  # doctest: +SKIP

- **Priors.** :class:`~mimic_pl.processor.AliasTable` joins the score with what is known of a word: which entities it
  usually means, and how often.
"""

from mimic_pl.linking.link_stream import LinkCounts, LinkStream
from mimic_pl.linking.linker import Linker
from mimic_pl.linking.zero_shot import center_mentions, fit_zero_shot, whiten, zero_shot_model

__all__ = [
    "LinkCounts",
    "LinkStream",
    "Linker",
    "center_mentions",
    "fit_zero_shot",
    "whiten",
    "zero_shot_model",
]
