"""Retrievers: which entities are worth scoring for a mention."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from typing_extensions import Self

from mimic_pl.construction import Recorded
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.model import MIMIC
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.records import Mention
from mimic_pl.units import States

DEFAULT_K = 100
"""Candidates per channel unless told otherwise; ``mimic-pl recall`` finds the number that a wanted recall needs."""


@dataclass(frozen=True)
class Queries:
    """Mentions as retrievers see them.

    Attributes:
        states: Their states, tensors ``[mentions, ...]``.
        names: The mentioned words.
        texts: Their texts as the model reads them.
    """

    states: States
    names: Sequence[str]
    texts: Sequence[str]

    @classmethod
    def of(cls, model: MIMIC, mentions: Sequence[Mention], states: States) -> Queries:
        """The queries of mentions with these states."""
        return cls(states, [m.mention for m in mentions], [model.processor.mention_text(m) for m in mentions])

    def __len__(self) -> int:
        """Number of mentions."""
        return len(self.names)


class Allowed(NamedTuple):
    """The entities that mentions may mean.

    Attributes:
        order: Their order numbers, int64 ``[n]``.
        condition: The same as a condition over the columns of the knowledge base, for engines that filter by
            themselves; None if there is none.
        type: The entities' type, if that is the only condition.
    """

    order: Tensor
    condition: str | None = None
    type: str | None = None


class Retriever(Recorded, ABC):
    """Finds the entities of one version of a knowledge base that may be the first for a mention.

    What it finds is then scored like any pair: a retriever decides which entities are scored, never their scores.

    A retriever is made with its settings, and opened for a version of a knowledge base and a model with :meth:`at`,
    which builds or catches up with whatever is derived from the knowledge base.

    Args:
        k: Candidates per mention and channel.
    """

    @in_range(k=COUNT)
    def __init__(self, k: int = DEFAULT_K) -> None:
        self.k = k
        self._opened: tuple[KnowledgeBase, MIMIC] | None = None

    def at(self, knowledge_base: KnowledgeBase, model: MIMIC) -> Self:
        """This retriever, opened for a version of a knowledge base whose states are the model's.

        Raises:
            StoreError: What is derived from the knowledge base cannot be written.
            ConfigError: The engine is not installed, or cannot be reached.
        """
        opened = copy.copy(self)
        opened._opened = knowledge_base, model
        opened._open()
        return opened

    def retrieve(self, mentions: Queries, k: int | None = None, allowed: Allowed | None = None) -> list[Tensor]:
        """Find candidates of mentions.

        Args:
            mentions: The mentions.
            k: Candidates per channel; by default that of the retriever.
            allowed: The only entities that may be found; all by default.

        Returns:
            Order numbers of each mention's candidates, int64, ascending: all that are allowed if these are no more than
            k, and otherwise at least k of them if the engine finds that many.
        """
        k = k or self.k
        everything = self.knowledge_base.index.order if allowed is None else allowed.order
        if len(everything) <= k:
            return [everything.sort().values.cpu()] * len(mentions)
        return self._search(mentions, k, allowed)

    @property
    def knowledge_base(self) -> KnowledgeBase:
        """The version that it was opened for."""
        assert self._opened is not None, "a retriever is opened with at()"
        return self._opened[0]

    @property
    def model(self) -> MIMIC:
        """The model that it was opened for."""
        assert self._opened is not None, "a retriever is opened with at()"
        return self._opened[1]

    def _open(self) -> None:  # a retriever may have nothing to open
        """Open what belongs to the knowledge base and the model, and bring it up to date."""

    @abstractmethod
    def _search(self, mentions: Queries, k: int, allowed: Allowed | None) -> list[Tensor]:
        """Like :meth:`retrieve`, for more than k entities."""
