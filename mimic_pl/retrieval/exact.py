"""The exact retriever: it ranks everything, and is what others are measured by."""

from __future__ import annotations

from torch import Tensor

from mimic_pl.ranking import PartialIndex, Ranker
from mimic_pl.retrieval.retriever import Allowed, Queries, Retriever


class ExactRetriever(Retriever):
    """The first k by the overall score among all entities.

    A :class:`~mimic_pl.linking.Linker` without a retriever ranks all entities in the same way.
    """

    def _search(self, mentions: Queries, k: int, allowed: Allowed | None) -> list[Tensor]:
        index = self.knowledge_base.index
        part = index if allowed is None else PartialIndex(index, allowed.order)
        ranking = Ranker(k, unit_ranks="cheap")(self.model.matcher, mentions.states, part)
        return [found.sort().values.cpu() for found in ranking.top_entities]
