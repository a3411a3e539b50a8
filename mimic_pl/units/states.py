"""The states of all units, and the tensors in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimic_pl.units.base import State

States = Mapping[str, State]
"""The states of all units by the units' names."""

Named = dict[tuple[str, str], Tensor]
"""Tensors by the name of the unit and their own."""


def flat(states: States) -> Named:
    """All tensors of these states."""
    return {(unit, name): state[name] for unit, state in states.items() for name in state}


def nested(tensors: Named) -> States:
    """The states that these tensors make."""
    states: dict[str, dict[str, Tensor]] = {}
    for (unit, name), tensor in tensors.items():
        states.setdefault(unit, {})[name] = tensor
    return states
