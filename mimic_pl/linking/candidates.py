"""From mentions to their candidates: encoding, exact ranking within each mention's restriction, records."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mimic_pl.batch import Batch, Inputs
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.mention_records import Restriction
from mimic_pl.links import Link
from mimic_pl.model import MIMIC
from mimic_pl.ranking import EntityIndex, PartialIndex, Ranker, ResidentIndex
from mimic_pl.records import Entity, Mention
from mimic_pl.units import States

_KEPT = 16
"""Restrictions whose entities are remembered."""

_RESIDENT_ON_CPU = 1 << 29
"""Bytes of states that are kept in memory on a CPU: 27,000 entities at published sizes; more are read in blocks."""


class Query(NamedTuple):
    """A mention to be linked, and the entities that it may mean."""

    mention: Mention
    restriction: Restriction


class CandidateSearch:
    """Ranks the entities of one version of a knowledge base for mentions.

    States of up to half a gigabyte, on a GPU of up to a quarter of its free memory, are kept there from the first
    search on; others are read from the folder in blocks, for each batch.

    Args:
        model: Encodes the mentions; its processor is fitted to the knowledge base.
        knowledge_base: The entities.
    """

    def __init__(self, model: MIMIC, knowledge_base: KnowledgeBase) -> None:
        self.model = model
        self.knowledge_base = knowledge_base
        self._index: EntityIndex | None = None
        self._parts: OrderedDict[Restriction, EntityIndex | None] = OrderedDict()

    @property
    def index(self) -> EntityIndex:
        """All entities."""
        if self._index is None:
            on_disk = self.knowledge_base.index
            size = on_disk.bytes_per_entity * len(on_disk)
            self._index = ResidentIndex(on_disk) if size <= _resident(on_disk.device) else on_disk
        return self._index

    def part(self, restriction: Restriction) -> EntityIndex | None:
        """The entities that a restriction allows; ``None`` if there are none.

        Raises:
            DataError: The restriction cannot be evaluated.
        """
        if not restriction:
            return self.index if len(self.index) else None
        if restriction not in self._parts:
            order = restriction.order(self.knowledge_base)
            self._parts[restriction] = PartialIndex(self.index, order) if len(order) else None
            if len(self._parts) > _KEPT:
                self._parts.popitem(last=False)
        self._parts.move_to_end(restriction)
        return self._parts[restriction]

    def inputs(self, queries: Sequence[Query]) -> Inputs:
        """Inputs of the mentions.

        Raises:
            DataError: A record is malformed, or an image cannot be used and the image policy is ``error``.
            ConfigError: A record lacks a field of the text template.
        """
        return self.model.processor.mentions([query.mention for query in queries])

    @torch.no_grad()
    def __call__(self, queries: Sequence[Query], inputs: Inputs, top_k: int | None) -> list[tuple[Link, ...]]:
        """The candidates of each mention, best first.

        Args:
            queries: The mentions.
            inputs: Their inputs.
            top_k: Candidates per mention; all entities by default.

        Raises:
            DataError: A restriction cannot be evaluated.
            NonFiniteScoreError: A score is NaN or infinite.
        """
        groups: dict[Restriction, list[int]] = {}
        for row, query in enumerate(queries):
            groups.setdefault(query.restriction, []).append(row)
        parts = {restriction: self.part(restriction) for restriction in groups}
        states = self._states(inputs)
        found: list[tuple[Link, ...]] = [()] * len(queries)
        for restriction, rows in groups.items():
            part = parts[restriction]
            if part is None:
                continue
            own = _rows(states, torch.tensor(rows, device=part.device))
            ranking = Ranker(top_k or len(part), unit_ranks="cheap")(self.model.matcher, own, part)
            entities = self._entities(ranking.top_entities)
            scores = {name: block.tolist() for name, block in ranking.top_scores.items()}
            for place, (row, order) in enumerate(zip(rows, ranking.top_entities.tolist(), strict=True)):
                found[row] = tuple(
                    Link(
                        entities[number],
                        scores["overall"][place][column],
                        None,
                        {name: block[place][column] for name, block in scores.items() if name != "overall"},
                    )
                    for column, number in enumerate(order)
                )
        return found

    def _states(self, inputs: Inputs) -> States:
        model = self.model
        training = model.training
        if training:  # setting a mode visits every part of the model, which takes longer than to encode one mention
            model.eval()
        try:
            batch = model.batch_encoder().to_device(cast(Batch, {"mentions": inputs}))
            return model.mention_states(batch["mentions"])
        finally:
            if training:
                model.train()

    def _entities(self, order: Tensor) -> dict[int, Entity]:
        numbers = torch.unique(order)
        return dict(zip(numbers.tolist(), self.knowledge_base.entities(numbers), strict=True))


def _rows(states: States, rows: Tensor) -> States:
    return {unit: {name: tensor[rows] for name, tensor in state.items()} for unit, state in states.items()}


def _resident(device: torch.device) -> int:
    """Bytes of states that are kept on a device."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _RESIDENT_ON_CPU
