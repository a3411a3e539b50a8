"""States of all units as a nested or a flat mapping of tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimic_pl.units.base import State

States = Mapping[str, State]
"""The states of all units by unit name."""

Named = dict[tuple[str, str], Tensor]
"""Tensors by unit name and tensor name."""


def flat(states: States) -> Named:
    """Flatten states to tensors by unit and tensor name."""
    return {(unit, name): state[name] for unit, state in states.items() for name in state}


def nested(tensors: Named) -> States:
    """Undo :func:`flat`."""
    states: dict[str, dict[str, Tensor]] = {}
    for (unit, name), tensor in tensors.items():
        states.setdefault(unit, {})[name] = tensor
    return states
