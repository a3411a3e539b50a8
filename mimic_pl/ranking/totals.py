"""Totals of a knowledge base that scores depend on, such as the mean of its entities' features."""

from __future__ import annotations

from torch import Tensor

from mimic_pl.ranking.index import EntityIndex
from mimic_pl.units import Matcher

_BLOCK = 1 << 12
"""Entities summed at once."""


def index_totals(matcher: Matcher, index: EntityIndex) -> dict[str, Tensor]:
    """Totals of all entities of an index, for :meth:`Matcher.set_totals`; collective.

    They are whole numbers: equal entities have equal totals, whatever their order, their blocks and processes.

    Returns:
        int64 tensors by name; empty if no unit has totals.
    """
    if not matcher.has_totals:
        return {}  # without reading the index
    local: dict[str, Tensor] = {}
    for _, block in index.blocks(_BLOCK):
        found = matcher.totals(block.states)
        local = {name: local[name] + total if local else total for name, total in found.items()}
    everyone = index.processes.gather_objects({name: total.cpu() for name, total in local.items()})
    summed: dict[str, Tensor] = {}
    for totals in filter(None, everyone):  # a process may have no entities
        summed = {name: summed[name] + total if summed else total for name, total in totals.items()}
    return {name: total.to(index.device) for name, total in summed.items()}
