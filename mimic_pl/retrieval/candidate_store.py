"""What an engine keeps of the entities of a knowledge base to search in: a copy that can always be made again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mimic_pl.ranges import NATURAL, in_range
from mimic_pl.records import Entity
from mimic_pl.retrieval.retriever import Allowed

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Rows(NamedTuple):
    """Entities to be stored.

    Attributes:
        order: Order numbers, ``[n]``.
        checksums: Checksums of the knowledge base, ``[n]``.
        entities: Records.
        texts: Their texts as the model reads them.
        vectors: Their key vectors, float32 ``[n, width]``; width 0 in a store without vectors.
    """

    order: Numbers
    checksums: Numbers
    entities: Sequence[Entity]
    texts: Sequence[str]
    vectors: Vectors


class CandidateStore(ABC):
    """A derived copy of the entities of a knowledge base, with an index of an engine.

    It says which version of the knowledge base it equals. :func:`~mimic_pl.retrieval.catch_up.catch_up` compares it
    with the knowledge base, and deletes and adds what differs: whatever was interrupted is done again.

    Args:
        width: Width of the key vectors.
    """

    has_vectors: bool = True
    """Whether vectors are stored; if not, states need not be read."""

    @in_range(width=NATURAL)
    def __init__(self, width: int) -> None:
        self.width = width

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings that the stored rows depend on, plain JSON values; with others, the store is built again."""

    @abstractmethod
    def reopen(self) -> None:
        """Open what is stored now, also what another process has written."""

    @property
    @abstractmethod
    def description(self) -> str | None:
        """What :meth:`clear` was called with; None if nothing usable is stored."""

    @property
    @abstractmethod
    def version(self) -> int | None:
        """Version of the knowledge base that was last committed."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of stored entities."""

    @abstractmethod
    def rows(self) -> tuple[Numbers, Numbers]:
        """Order numbers and checksums of the stored entities, ``[n]`` each, in any order."""

    @abstractmethod
    def clear(self, description: str) -> None:
        """Delete everything, and describe what comes."""

    @abstractmethod
    def delete(self, order: Numbers) -> None:
        """Delete entities."""

    @abstractmethod
    def add(self, rows: Rows) -> None:
        """Add entities whose order numbers are not stored."""

    @abstractmethod
    def commit(self, version: int) -> None:
        """Index what was added, make all changes durable, and be at this version of the knowledge base."""


class VectorStore(CandidateStore):
    """A store that finds the entities whose vectors have the largest products with a mention's."""

    @abstractmethod
    def nearest(self, vectors: Vectors, k: int, allowed: Allowed | None) -> list[Tensor]:
        """Order numbers of the k nearest entities of each query, in any order.

        Args:
            vectors: Queries, float32 ``[mentions, width]``.
            k: Number of entities.
            allowed: The only entities that may be found.
        """
