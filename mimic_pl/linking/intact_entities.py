"""The entities of a partly damaged knowledge base that can be read, to count its statistics again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.unit_totals import Totals, summed
from mimic_pl.model import MIMIC
from mimic_pl.records import Entity

_AT_ONCE = 4096

T = TypeVar("T")


class IntactEntities:
    """All entities of a knowledge base but some, and others; reads the whole knowledge base in each iteration.

    Entities whose rows are damaged are left out.

    Args:
        kb: The knowledge base.
        without: Ids of entities to leave out.
        added: Other entities.
    """

    def __init__(self, kb: KnowledgeBase, without: Collection[str], added: Sequence[Entity]) -> None:
        self.kb = kb
        self.without = {*without}
        self.added = added

    def __iter__(self) -> Iterator[Entity]:
        """The entities."""
        for _, entities in self._records():
            yield from entities
        yield from self.added

    def totals(self, model: MIMIC, added: Totals) -> Totals:
        """Totals of the model's units, given those of the other entities."""
        found = added
        for order, _ in self._records():
            for totals in _intact(lambda order: model.matcher.totals(self.kb.index.select(order).states), order):
                found = summed(found, totals)
        return found

    def _records(self) -> Iterator[tuple[Tensor, list[Entity]]]:
        for order in torch.split(self.kb.index.order, _AT_ONCE):
            for numbers, entities in _intact(lambda order: (order, self.kb.entities(order)), order):
                rows = [row for row, entity in enumerate(entities) if entity.id not in self.without]
                yield numbers[rows], [entities[row] for row in rows]


def _intact(read: Callable[[Tensor], T], order: Tensor) -> Iterator[T]:
    """Read the entities with these order numbers, in parts without those that are damaged."""
    try:
        found = read(order)
    except StoreError:
        if len(order) > 1:
            for half in order.tensor_split(2):
                yield from _intact(read, half)
        return
    yield found
