"""The entity index: what the units keep of every entity, in knowledge-base order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mimic_pl.units import States


class EntityIndex:
    """States of all entities of a knowledge base, filled batch by batch and read in blocks.

    Memory is set aside once, when the first batch tells what an entity's states look like: encoding never holds the
    states twice.

    Args:
        num_entities: Entities in the knowledge base.
        device: Where the states are kept.
        dtype: How they are kept.
    """

    def __init__(
        self,
        num_entities: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_entities = num_entities
        self.device = torch.device(device)
        self.dtype = dtype
        self._states: States = {}
        self._filled = 0

    def append(self, states: States) -> None:
        """Add the states of the next entities in knowledge-base order: tensors ``[batch, ...]``.

        Raises:
            ValueError: More entities come than were announced.
        """
        batch = _length(states)
        if self._filled + batch > self.num_entities:
            raise ValueError(
                f"the index was made for {self.num_entities} entities and got {self._filled + batch}: "
                "the loader of entities yields each of them once, in order"
            )
        if not self._states:
            self._states = {
                unit: {name: self._empty(tensor) for name, tensor in state.items()} for unit, state in states.items()
            }
        for unit, state in states.items():
            for name, tensor in state.items():
                self._states[unit][name][self._filled : self._filled + batch] = tensor
        self._filled += batch

    def __len__(self) -> int:
        """Entities filled in so far."""
        return self._filled

    def select(self, positions: Tensor) -> States:
        """States of the entities at these positions, int64 ``[n]`` (copies)."""
        return {unit: {name: t[positions] for name, t in state.items()} for unit, state in self._states.items()}

    def blocks(self, size: int) -> Iterator[tuple[int, int, States]]:
        """Go through the knowledge base in order, in blocks of one size.

        Yields:
            The first position of a block, one past its last, and its states: views ``[size, ...]``, except that the
            last block is a copy, filled up to ``size`` with repetitions of its last entity.
        """
        for start in range(0, self._filled, size):
            stop = min(start + size, self._filled)
            if stop - start == size:
                yield start, stop, self._slice(start, stop)
            else:
                positions = torch.arange(start, start + size, device=self.device).clamp_max(stop - 1)
                yield start, stop, self.select(positions)

    def _slice(self, start: int, stop: int) -> States:
        return {unit: {name: t[start:stop] for name, t in state.items()} for unit, state in self._states.items()}

    @property
    def bytes_per_entity(self) -> int:
        """Memory that one entity takes."""
        return sum(t[0].numel() * t.element_size() for state in self._states.values() for t in state.values())

    def _empty(self, like: Tensor) -> Tensor:
        dtype = self.dtype if like.is_floating_point() else like.dtype
        return torch.empty((self.num_entities, *like.shape[1:]), dtype=dtype, device=self.device)


def _length(states: States) -> int:
    """How many mentions or entities these states are of."""
    return next(len(tensor) for state in states.values() for tensor in state.values())
