"""The batch of all processes: their entities are each other's negatives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.features import Features
from mimic_pl.units import States, flat, nested


class GatheredBatch:
    """The batch that the processes of a training step have together.

    A process scores its own mentions against the entities of all. Its columns are ordered by itself: the golds of its
    mentions first, so that column j is the gold of mention j as in a batch of one process, then the golds of the other
    processes, then the further entities of all (hard negatives).

    Every method is collective. A single process gets back what it gave.

    Args:
        processes: The processes.
        mentions: Mentions of this process.
        entities: Its entities: a gold for each mention, and further ones behind them.
        device: Where the batch is.
        global_negatives: Off, every process keeps to its own entities: each gets back what it gave.
    """

    def __init__(
        self,
        processes: ProcessGroup,
        mentions: int,
        entities: int,
        device: torch.device,
        global_negatives: bool = True,
    ) -> None:
        self.processes = processes
        self.exchanges = global_negatives and processes.world_size > 1
        self.mentions, self.entities = map(
            list, zip(*processes.gather_integers(mentions, entities, device=device), strict=True)
        )
        self.device = device
        self._first = [processes.rank, *(rank for rank in range(processes.world_size) if rank != processes.rank)]

    @property
    def own_weight(self) -> float:
        """What a mean over this process's mentions counts: 1 where all processes have equally many.

        DDP takes the mean of the processes' gradients; with this factor that is the gradient of the mean over all
        mentions.
        """
        own = self.mentions[self.processes.rank]
        return own * self.processes.world_size / sum(self.mentions)

    def states(self, own: States) -> States:
        """States of all columns from those of this process's entities."""
        tensors = flat(own)
        return nested(dict(zip(tensors, self._columns(list(tensors.values())), strict=True)))

    def positions(self, own: Tensor) -> Tensor:
        """Knowledge-base positions of all columns, int64 ``[columns]``, from those of this process's entities."""
        return self._columns([own])[0]

    def all_entities(self, own: Features) -> Features:
        """Features of all columns."""
        return _features(own, self._columns(list(own.tensors().values())))

    def all_mentions(self, own: Features) -> Features:
        """Features of the mentions of all processes, this one's first."""
        return _features(own, self.rows(*own.tensors().values()))

    def rows(self, *own: Tensor) -> list[Tensor]:
        """Tensors of the mentions of all processes, ``[mentions, ...]``, this one's first."""
        if not self.exchanges:
            return list(own)
        parts = self.processes.gather(own, self.mentions)
        return [torch.cat(pieces) for pieces in zip(*(parts[rank] for rank in self._first), strict=True)]

    def all_scores(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of the mentions of all processes ``[mentions, columns]``: this one's first, each one's gold in turn.

        Args:
            own: Scores of this process's mentions with all columns.
        """
        if not self.exchanges:
            return dict(own)
        # Each process sends its columns in the common order, and puts those that it gets into its own.
        back = self._order.argsort()
        rows = self.rows(*(score[:, back] for score in own.values()))
        return {name: score[:, self._order] for name, score in zip(own, rows, strict=True)}

    @cached_property
    def _order(self) -> Tensor:
        """Where this process's columns stand in the order that all have in common: all golds by rank, then the rest."""
        golds = torch.split(torch.arange(sum(self.mentions), device=self.device), self.mentions)
        further = torch.arange(sum(self.mentions), sum(self.entities), device=self.device)
        return torch.cat([*(golds[rank] for rank in self._first), further])

    def _columns(self, own: list[Tensor]) -> list[Tensor]:
        if not self.exchanges:
            return own
        parts = self.processes.gather(own, self.entities)
        golds = [[tensor[: self.mentions[rank]] for tensor in parts[rank]] for rank in self._first]
        further = [[tensor[self.mentions[rank] :] for tensor in part] for rank, part in enumerate(parts)]
        return [torch.cat(pieces) for pieces in zip(*golds, *further, strict=True)]


def _features(like: Features, tensors: list[Tensor]) -> Features:
    return Features.of(dict(zip(like.tensors(), tensors, strict=True)))
