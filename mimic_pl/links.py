"""Links: what linking a mention returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from mimic_pl.errors import DataError
from mimic_pl.records import Entity, Mention


@dataclass(frozen=True, slots=True)
class Link:
    """One candidate entity of a mention, with its score.

    Attributes:
        entity: The entity.
        score: Overall score, which the candidates are ordered by.
        probability: Probability that the mention means this entity; ``None`` without a calibration.
        units: Score of each unit by name.
    """

    entity: Entity
    score: float
    probability: float | None = None
    units: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Links(Sequence[Link]):
    """The candidates of a mention, best first.

    Attributes:
        mention: The mention; ``None`` if its record could not be read.
        candidates: Its candidates.
        nil_probability: Probability that no entity of the knowledge base is meant; ``None`` without a calibration.
        error: Why the mention could not be linked, or ``None``.
        number: Number of the record in the input, from 0.
        certified: Whether it is proven that no entity that the mention may mean has a higher score than the first
            candidate; ``None`` unless asked for (see :meth:`Linker.link`).
    """

    mention: Mention | None
    candidates: tuple[Link, ...] = ()
    nil_probability: float | None = None
    error: DataError | None = None
    number: int = 0
    certified: bool | None = None

    @property
    def is_nil(self) -> bool:
        """Whether "none of them" is more probable than the first candidate; without candidates it is."""
        if not self.candidates:
            return self.error is None
        first = self.candidates[0].probability
        return self.nil_probability is not None and first is not None and self.nil_probability > first

    @property
    def best(self) -> Link | None:
        """The first candidate; ``None`` for NIL or an error."""
        return None if self.is_nil or not self.candidates else self.candidates[0]

    @overload
    def __getitem__(self, index: int) -> Link: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Link, ...]: ...

    def __getitem__(self, index: int | slice) -> Link | tuple[Link, ...]:
        """A candidate, or some of them."""
        return self.candidates[index]

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.candidates)
