"""The global batch: entities of all processes as negatives of each mention."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from mimic_pl.distributed import ProcessGroup
from mimic_pl.features import Features
from mimic_pl.units import States, flat, nested


class GatheredBatch:
    """The global batch of a training step across all processes.

    A process scores its local mentions against the entities of all processes. Each process has its own column order:
    the golds of its mentions first, so that column j is the gold of mention j as with one process, then the golds of
    the other processes, then the hard negatives of all.

    Every method is collective. With a single process, its inputs are returned unchanged.

    Args:
        processes: The processes.
        mentions: Number of local mentions.
        entities: Number of local entities: a gold for each mention, then hard negatives.
        device: Device of the batch.
        global_negatives: If False, processes use their local entities only, and inputs are returned unchanged.
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
        self._ranks = [processes.rank, *(rank for rank in range(processes.world_size) if rank != processes.rank)]

    @property
    def local_weight(self) -> float:
        """Weight of a mean over the local mentions: 1 if all processes have the same number.

        DDP averages gradients over processes; with this factor, that is the gradient of the mean over all mentions.
        """
        return self.mentions[self.processes.rank] * self.processes.world_size / sum(self.mentions)

    def states(self, local: States) -> States:
        """States of all columns from those of the local entities."""
        tensors = flat(local)
        return nested(dict(zip(tensors, self._columns(list(tensors.values())), strict=True)))

    def positions(self, local: Tensor) -> Tensor:
        """Knowledge base positions of all columns, int64 ``[columns]``, from those of the local entities."""
        return self._columns([local])[0]

    def all_entities(self, local: Features) -> Features:
        """Features of all columns from those of the local entities."""
        return _features(local, self._columns(list(local.tensors().values())))

    def all_mentions(self, local: Features) -> Features:
        """Features of the mentions of all processes, local ones first."""
        return _features(local, self.rows(*local.tensors().values()))

    def rows(self, *local: Tensor) -> list[Tensor]:
        """Tensors of the mentions of all processes, ``[mentions, ...]``, local ones first."""
        if not self.exchanges:
            return list(local)
        parts = self.processes.gather(local, self.mentions)
        return [torch.cat(pieces) for pieces in zip(*(parts[rank] for rank in self._ranks), strict=True)]

    def all_scores(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of all processes' mentions ``[mentions, columns]``, local ones first, with golds on the diagonal.

        Args:
            local: Scores of the local mentions with all columns.
        """
        if not self.exchanges:
            return dict(local)
        # Columns are sent in the common order and reordered on receipt.
        back = self._order.argsort()
        rows = self.rows(*(score[:, back] for score in local.values()))
        return {name: score[:, self._order] for name, score in zip(local, rows, strict=True)}

    @cached_property
    def _order(self) -> Tensor:
        """Positions of this process's columns in the common order, which is all golds by rank, then hard negatives."""
        golds = torch.split(torch.arange(sum(self.mentions), device=self.device), self.mentions)
        negatives = torch.arange(sum(self.mentions), sum(self.entities), device=self.device)
        return torch.cat([*(golds[rank] for rank in self._ranks), negatives])

    def _columns(self, local: list[Tensor]) -> list[Tensor]:
        if not self.exchanges:
            return local
        parts = self.processes.gather(local, self.entities)
        golds = [[tensor[: self.mentions[rank]] for tensor in parts[rank]] for rank in self._ranks]
        negatives = [[tensor[self.mentions[rank] :] for tensor in part] for rank, part in enumerate(parts)]
        return [torch.cat(pieces) for pieces in zip(*golds, *negatives, strict=True)]


def _features(like: Features, tensors: list[Tensor]) -> Features:
    return Features.of(dict(zip(like.tensors(), tensors, strict=True)))
