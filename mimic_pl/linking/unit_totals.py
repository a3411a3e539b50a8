"""Totals of a living knowledge base that the units' scores depend on, such as the mean of its entities' features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.model import MIMIC
from mimic_pl.ranking import IndexDtype, MemoryIndex, index_totals
from mimic_pl.units import States

TOTALS = "units"
"""Name under which a knowledge base keeps the totals of the units."""

_ENTITIES = "entities"
"""Number of the entities that were summed: an interrupted change may have left totals of an earlier version."""

Totals = dict[str, Tensor]


def centered_model(model: MIMIC, kb: KnowledgeBase) -> MIMIC:
    """The model with the totals of a knowledge base; a copy that shares the encoder, if any unit has totals."""
    if not model.matcher.has_totals:
        return model
    totals = totals_of(model, kb)
    centered = copy.copy(model)
    # A module's copy shares the table of its parts, and other linkers of the same model have other knowledge bases.
    centered._modules = dict(model._modules)
    centered.matcher = copy.deepcopy(model.matcher)
    centered.matcher.set_totals("entities", {name: total.to(model.device) for name, total in totals.items()})
    return centered


def totals_of(model: MIMIC, kb: KnowledgeBase) -> Totals:
    """Totals of the entities of a knowledge base, int64: those that it keeps, or if it keeps none, by reading it."""
    if not model.matcher.has_totals:
        return {}
    kept = dict(kb.statistics(TOTALS) or {})
    if kept.pop(_ENTITIES, None) == len(kb):
        return {name: torch.as_tensor(np.asarray(total)) for name, total in kept.items()}
    return index_totals(model.matcher, kb.index)


def statistics(totals: Totals, entities: int) -> dict[str, Any]:
    """What a knowledge base of this number of entities keeps, by name; nothing if there are no totals."""
    arrays = {name: total.cpu().numpy() for name, total in totals.items()}
    plain = {name: array.item() if array.ndim == 0 else array for name, array in arrays.items()}
    return {TOTALS: {**plain, _ENTITIES: entities}} if totals else {}


def added_totals(model: MIMIC, dtype: IndexDtype, states: States) -> Totals:
    """Totals of entities that are about to be added to a knowledge base: of their states as it will store them."""
    if not model.matcher.has_totals:
        return {}
    count = len(next(iter(next(iter(states.values())).values())))
    index = MemoryIndex(model.device, dtype, capacity=count)
    index.add([str(number) for number in range(count)], states)
    return index_totals(model.matcher, index)


def removed_totals(model: MIMIC, kb: KnowledgeBase, ids: Sequence[str]) -> Totals:
    """Totals of some entities of a knowledge base."""
    if not model.matcher.has_totals:
        return {}
    return model.matcher.totals(kb.index.select(kb.order_of(ids)).states)


def summed(one: Totals, other: Totals) -> Totals:
    """Totals of the entities of both; either may be empty."""
    return {name: one[name].cpu() + total.cpu() for name, total in other.items()} if one and other else one or other


def changed(totals: Totals, added: Totals, removed: Totals) -> Totals:
    """Totals after a change; each side may be empty."""
    zero = torch.zeros((), dtype=torch.int64)
    return {
        name: total.cpu() + added.get(name, zero).cpu() - removed.get(name, zero).cpu()
        for name, total in totals.items()
    }
