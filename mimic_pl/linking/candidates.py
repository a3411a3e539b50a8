"""From mentions to their candidates: encoding, ranking within each mention's restriction, records."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mimic_pl.batch import Batch, Inputs
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.mention_records import Restriction
from mimic_pl.links import Link
from mimic_pl.model import MIMIC
from mimic_pl.ranking import EntityIndex, LanceIndex, PartialIndex, Ranker, Ranking, ResidentIndex, Shard, challengers
from mimic_pl.records import Entity, Mention
from mimic_pl.retrieval import Allowed, Queries, Retriever
from mimic_pl.units import States, flat, nested

_KEPT = 16
"""Restrictions whose entities are remembered."""

_RESIDENT_ON_CPU = 1 << 29
"""Bytes of states that are kept in memory on a CPU: 27,000 entities at published sizes; more are read in blocks."""

_WORTH_BOUNDS = 512
"""Pairs from which bounds take less time than they save: a search has a fixed cost beside that of its pairs."""


class Query(NamedTuple):
    """A mention to be linked, and the entities that it may mean."""

    mention: Mention
    restriction: Restriction


class Found(NamedTuple):
    """What a search found for a mention.

    Attributes:
        links: Its candidates, best first.
        certified: Whether the first is proven to be the first of all entities that the mention may mean; None unless
            asked for.
    """

    links: tuple[Link, ...] = ()
    certified: bool | None = None


def require_one_process(processes: ProcessGroup) -> None:
    """Check that this process is the only one, as it must be for a retriever.

    Raises:
        ConfigError: It is not.
    """
    if processes.world_size > 1:
        raise ConfigError(
            "A retriever searches in one process. Link without one, or with one process (no --devices and --num_nodes)."
        )


class CandidateSearch:
    """Ranks the entities of one version of a knowledge base for mentions: all, or those that a retriever finds.

    States of up to half a gigabyte, on a GPU of up to a quarter of its free memory, are kept there from the first
    search on; others are read from the folder in blocks, for each batch.

    Several processes each have a shard of the entities, rank the mentions of all of them among it, and get the
    candidates of their own mentions.

    Args:
        model: Encodes the mentions; its processor is fitted to the knowledge base.
        knowledge_base: The entities.
        retriever: Opened for this version and model; by default all entities are ranked. It searches in one process.
        processes: The processes that search together, with the same model and version; this one alone by default.
    """

    def __init__(
        self,
        model: MIMIC,
        knowledge_base: KnowledgeBase,
        retriever: Retriever | None = None,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.model = model
        self.knowledge_base = knowledge_base
        self.retriever = retriever
        self.processes = processes or ProcessGroup(alone=True)
        self._index: EntityIndex | None = None
        self._allowed: OrderedDict[Restriction, Allowed] = OrderedDict()

    @property
    def index(self) -> EntityIndex:
        """All entities, or this process's shard of them."""
        if self._index is None:
            on_disk = self._on_disk()
            size = on_disk.bytes_per_entity * len(on_disk.order)
            self._index = ResidentIndex(on_disk) if size <= _resident(on_disk.device) else on_disk
        return self._index

    def _on_disk(self) -> LanceIndex:
        kb, processes = self.knowledge_base, self.processes
        if processes.world_size == 1:
            return kb.index
        shard = Shard.of(kb.index.order, processes)
        return LanceIndex(kb.folder, device=kb.device, shard=shard, version=kb.version)

    def part(self, restriction: Restriction) -> EntityIndex | None:
        """The entities that a restriction allows; ``None`` if there are none.

        Raises:
            DataError: The restriction cannot be evaluated.
        """
        allowed = self.allowed(restriction)
        if allowed is None:
            return self.index if len(self.index) else None
        return PartialIndex(self.index, allowed.order) if len(allowed.order) else None

    def allowed(self, restriction: Restriction) -> Allowed | None:
        """The entities that a restriction allows; ``None`` if it restricts nothing.

        Raises:
            DataError: The restriction cannot be evaluated.
        """
        if not restriction:
            return None
        if restriction not in self._allowed:
            self._allowed[restriction] = restriction.allowed(self.knowledge_base)
            if len(self._allowed) > _KEPT:
                self._allowed.popitem(last=False)
        self._allowed.move_to_end(restriction)
        return self._allowed[restriction]

    @torch.no_grad()
    def encoded(self, queries: Sequence[Query]) -> States:
        """States of mentions that can be ranked.

        Raises:
            DataError: A record is malformed, a restriction cannot be evaluated, or an image cannot be used and the
                image policy is ``error``.
            ConfigError: A record lacks a field of the text template.
        """
        inputs = self._inputs(queries)
        for restriction in dict.fromkeys(query.restriction for query in queries):
            self.allowed(restriction)
        return self._states(inputs)

    @torch.no_grad()
    def __call__(
        self, queries: Sequence[Query], states: States, top_k: int | None, certify: bool = False
    ) -> list[Found]:
        """The candidates of each mention, best first; collective.

        Args:
            queries: The mentions of this process, maybe none.
            states: Their states; without mentions, they may be empty.
            top_k: Candidates per mention; all entities by default.
            certify: Try to prove that the first is the first of all entities.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; all processes raise it.
        """
        groups: dict[Restriction, list[int]] = {}
        for row, query in enumerate(queries):
            groups.setdefault(query.restriction, []).append(row)
        everyone = self.processes.gather_objects((list(groups), _shapes(states)))
        if not states:  # a process without mentions does not know the shapes
            states = _empty(next((shapes for _, shapes in everyone if shapes), {}), self.model.device)
        found = [Found()] * len(queries)
        for restriction in dict.fromkeys(restriction for some, _ in everyone for restriction in some):
            rows = groups.get(restriction, [])
            own = _rows(states, torch.tensor(rows, dtype=torch.int64))
            mentions = [queries[row].mention for row in rows]
            for place, of_mention in enumerate(self.ranked(mentions, own, restriction, top_k, certify)):
                found[rows[place]] = of_mention
        return found

    @torch.no_grad()
    def queries(self, queries: Sequence[Query]) -> Queries:
        """Encode mentions as retrievers see them.

        Raises:
            DataError: A record is malformed, or an image cannot be used and the image policy is ``error``.
        """
        states = self._states(self._inputs(queries))
        return Queries.of(self.model, [query.mention for query in queries], states)

    def ranked(
        self,
        mentions: Sequence[Mention],
        states: States,
        restriction: Restriction,
        top_k: int | None,
        certify: bool = False,
    ) -> list[Found]:
        """The candidates of encoded mentions with the same restriction; collective.

        Args:
            mentions: The mentions.
            states: Their states.
            restriction: The entities that they may mean.
            top_k: Candidates per mention; all entities if None.
            certify: Try to prove that the first is the first of all entities.
        """
        if self.retriever is None or top_k is None:
            part = self.processes.run_together(lambda: self.part(restriction))
            certified = True if certify else None  # all are ranked
            if part is None:
                return [Found((), certified)] * len(mentions)
            ranking = self._ranking(states, part, top_k)
            found_links = self.processes.run_together(lambda: self._links([ranking]))
            return [Found(links, certified) for links in found_links]
        found = self.candidates(mentions, states, restriction, top_k)
        # One by one: a mention's links do not depend on the others of its batch.
        rankings = {
            row: self._ranking(_rows(states, torch.tensor([row])), PartialIndex(self.index, order), top_k)
            for row, order in enumerate(found)
            if len(order)
        }
        links = dict(zip(rankings, self._links(list(rankings.values())), strict=True))
        proofs = self._certified(states, restriction, found, rankings) if certify else [None] * len(mentions)
        return [Found(links.get(row, ()), certified) for row, certified in enumerate(proofs)]

    def _certified(
        self, states: States, restriction: Restriction, found: Sequence[Tensor], rankings: Mapping[int, Ranking]
    ) -> list[bool | None]:
        """Whether bounds exclude that an entity that was not scored has the score of the first, by mention."""
        certified: list[bool | None] = [not len(order) for order in found]
        part = self.part(restriction)
        if part is None or not rankings:
            return certified
        rows = torch.tensor(list(rankings))
        firsts = torch.cat([ranking.top_scores["overall"][:, 0] for ranking in rankings.values()])
        reaching = challengers(self.model.matcher, _rows(states, rows), part, firsts)
        for place, row in enumerate(rankings):
            others = reaching.order[reaching.rows == place].cpu()
            certified[row] = bool(torch.isin(others, found[row]).all())
        return certified

    def candidates(
        self, mentions: Sequence[Mention], states: States, restriction: Restriction, top_k: int
    ) -> list[Tensor]:
        """Order numbers of what the retriever finds for each mention; see :meth:`ranked`."""
        assert self.retriever is not None, "without a retriever everything is ranked"
        queries = Queries.of(self.model, mentions, states)
        return self.retriever.retrieve(queries, max(self.retriever.k, top_k), self.allowed(restriction))

    def _ranking(self, states: States, part: EntityIndex, top_k: int | None) -> Ranking:
        own = len(next(iter(flat(states).values())))
        mentions = sum(size for (size,) in part.processes.gather_integers(own, device=part.device))
        pairs = len(part) * mentions
        ranker = Ranker(top_k or len(part), unit_ranks="cheap", prune=pairs > _WORTH_BOUNDS)
        return ranker(self.model.matcher, states, part)

    def _links(self, rankings: Sequence[Ranking]) -> list[tuple[Link, ...]]:
        """The links of the mentions of rankings, whose records are read at once."""
        if not rankings:
            return []
        entities = self._entities(torch.cat([ranking.top_entities.flatten() for ranking in rankings]))
        return [links for ranking in rankings for links in _links_of(ranking, entities)]

    def _inputs(self, queries: Sequence[Query]) -> Inputs:
        return self.model.processor.mentions([query.mention for query in queries])

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


def _links_of(ranking: Ranking, entities: Mapping[int, Entity]) -> Iterator[tuple[Link, ...]]:
    scores = {name: block.tolist() for name, block in ranking.top_scores.items()}
    for place, order in enumerate(ranking.top_entities.tolist()):
        yield tuple(
            Link(
                entities[number],
                scores["overall"][place][column],
                None,
                {name: block[place][column] for name, block in scores.items() if name != "overall"},
            )
            for column, number in enumerate(order)
        )


def _rows(states: States, rows: Tensor) -> States:
    return {
        unit: {name: tensor[rows.to(tensor.device)] for name, tensor in state.items()} for unit, state in states.items()
    }


Shapes = dict[tuple[str, str], tuple[torch.dtype, torch.Size]]


def _shapes(states: States) -> Shapes:
    """Dtype of each tensor and shape of its rows."""
    return {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in flat(states).items()}


def _empty(shapes: Shapes, device: torch.device) -> States:
    """States of no mention, tensors ``[0, ...]``."""
    return nested(
        {name: torch.empty((0, *shape), dtype=dtype, device=device) for name, (dtype, shape) in shapes.items()}
    )


def _resident(device: torch.device) -> int:
    """Bytes of states that are kept on a device."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _RESIDENT_ON_CPU
