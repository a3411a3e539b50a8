"""Base class of interaction units, split so that one-sided work is done once per mention and once per entity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.features import FeatureDims, Features
from mimic_pl.loss_inputs import LossInputs

State = Mapping[str, Tensor]
"""A unit's state of one side: named tensors whose first dimension is mentions or entities."""

Side = Literal["mentions", "entities"]

_DIAGONAL = 32
"""Aligned pairs that the default :meth:`Unit.pairs` scores at once, as the diagonal of a square."""


class Bounds(NamedTuple):
    """Lower and upper bounds of scores, both ``[mentions, entities]`` for a block and ``[pairs]`` for selected pairs.

    Where a score costs no more than a bound, both are the score itself, the same tensor.
    """

    lower: Tensor
    upper: Tensor
    known: Tensor | None = None
    """The part of the score that is computed exactly, if a unit needs it for tighter bounds."""

    @property
    def exact(self) -> bool:
        """Whether these are the scores themselves."""
        return self.lower is self.upper


def at_pairs(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``matrix[rows, columns]``, ``[pairs]``, in a quarter of the time on a CPU.

    Args:
        matrix: ``[mentions, entities]``.
        rows: int64 ``[pairs]``.
        columns: int64 ``[pairs]``.
    """
    return matrix.reshape(-1).index_select(0, rows * matrix.shape[1] + columns)


class Unit(Recorded, nn.Module, ABC):
    """Base class of the modules that score every mention-entity pair.

    A unit implements three methods. :meth:`mention` and :meth:`entity` compute everything that depends on one side
    only, and :meth:`score` what depends on the pair. Training, ranking and linking all use these three, and the entity
    index stores what :meth:`entity` returns: keep it small.

    The other methods are optional. :meth:`bounds` (with :meth:`prepare`), :meth:`tighten` and :meth:`pairs` make
    ranking faster without changing any rank; a unit whose :meth:`score` is a few products needs none of them.
    :meth:`query_vector` and :meth:`key_vector` let an index of nearest neighbours find candidates. :meth:`loss` adds a
    term to the training loss, and :meth:`gates` exposes gates to monitors and plots. What scores need to know about the
    knowledge base as a whole goes through :meth:`totals` and :meth:`set_totals`.

    :func:`~mimic_pl.units.check_unit` checks whether a unit meets these requirements.

    Args:
        dims: Widths of the encoder's features.

    Example:
        >>> from mimic_pl import FeatureDims
        >>> from mimic_pl.units import Unit, check_unit
        >>> class TextDistance(Unit):
        ...     def mention(self, features):
        ...         return {"text": features.text_global}
        ...
        ...     def entity(self, features):
        ...         return {"text": features.text_global}
        ...
        ...     def score(self, mentions, entities):
        ...         return -(mentions["text"][:, None] - entities["text"][None]).norm(dim=-1)
        >>> check_unit(TextDistance(FeatureDims(text=8, image=4)))
    """

    reads_padding: bool = True
    """Whether a score depends on padding tokens. If no unit's does, texts need not be padded to a fixed length."""

    expensive: bool = False
    """Whether a score costs far more than its bounds, so that ranking by this unit alone may be skipped."""

    in_overall: bool = True
    """Whether the score has a part in the overall score; a unit without one is trained by its own :meth:`loss` only."""

    name: str = ""
    """Name in the matcher, which sets it: that of the unit's scores."""

    scoring_only: tuple[str, ...] = ()
    """Own parameters and buffers on which no entity's state depends: an index stays valid when they change."""

    of_knowledge_base: tuple[str, ...] = ()
    """Own buffers that :meth:`set_totals` sets for a knowledge base: they are no weights."""

    has_totals: bool = False
    """Whether scores depend on :meth:`totals`."""

    def __init__(self, dims: FeatureDims) -> None:
        super().__init__()
        self.dims = dims

    @abstractmethod
    def mention(self, features: Features) -> State:
        """Compute the state of mentions from normed features: tensors ``[mentions, ...]``."""

    @abstractmethod
    def entity(self, features: Features) -> State:
        """Compute the state of entities from normed features: tensors ``[entities, ...]``."""

    @abstractmethod
    def score(self, mentions: State, entities: State) -> Tensor:
        """Score every pair: ``[mentions, entities]``, higher is better."""

    def prepare(self, mentions: State) -> State:
        """Add what :meth:`bounds` needs to the mentions' state; called once before a pass over the entities."""
        return mentions

    def bounds(self, mentions: State, entities: State) -> Bounds:
        """Bound every pair's score, ``[mentions, entities]``; the default returns the score itself.

        The bounds must hold up to rounding errors.
        """
        score = self.score(mentions, entities)
        return Bounds(score, score)

    def tighten(self, mentions: State, entities: State, bounds: Bounds, rows: Tensor, columns: Tensor) -> Bounds | None:
        """Tighter bounds of selected pairs, ``[pairs]``, for those that :meth:`bounds` leave undecided.

        Worth it where they cost less than :meth:`pairs`. The default has none.

        Args:
            mentions: Prepared state of mentions.
            entities: State of entities.
            bounds: What :meth:`bounds` returned for these states.
            rows: Mentions of the pairs, ascending, int64 ``[pairs]``.
            columns: Entities of the pairs, int64 ``[pairs]``.
        """
        return None

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """Score aligned pairs, ``[pairs]``: mention i with entity i.

        Called in float32 for the pairs that bounds leave undecided, and in float64 for near ties.
        """
        count = len(next(iter(mentions.values())))  # one tensor: the others may not have been copied yet
        scores = []
        for start in range(0, max(count, 1), _DIAGONAL):
            rows = slice(start, start + _DIAGONAL)
            sides = ({name: tensor[rows] for name, tensor in side.items()} for side in (mentions, entities))
            scores.append(self.score(*sides).diagonal())
        return torch.cat(scores)

    def query_vector(self, mentions: State) -> Tensor | None:
        """Vectors whose products with :meth:`key_vector` stand for the scores, ``[mentions, width]``.

        Candidates are found by nearest neighbours of these vectors, and then scored by :meth:`score`: products need not
        be the scores, but should order entities like them. None, the default, if the unit has no such vectors.
        """
        return None

    def key_vector(self, entities: State) -> Tensor | None:
        """Vectors of entities for :meth:`query_vector`, ``[entities, width]``."""
        return None

    def totals(self, state: State) -> dict[str, Tensor]:
        """Sums over mentions or entities that scores depend on, such as those of a mean; none by default.

        They are whole numbers (int64), so that totals of parts can be added, and those of removed entities subtracted,
        in any order with the same result.

        Args:
            state: State of some mentions or entities, as stored in an index.
        """
        return {}

    def set_totals(self, side: Side, totals: Mapping[str, Tensor]) -> None:
        """Use the totals of all entities of a knowledge base, or of a sample of mentions, for scores.

        A state must not depend on them, so that a knowledge base can change without being encoded again.

        Args:
            side: ``mentions`` or ``entities``.
            totals: Sums of :meth:`totals`.
        """

    def loss(self, inputs: LossInputs) -> Tensor | None:
        """An extra loss term of the unit, a scalar, such as a regulariser or an auxiliary task; none by default.

        Args:
            inputs: Scores and features of the training batch; ``inputs.scores`` has the unit's scores under its name.
        """
        return None

    def gates(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """Gate values for a block of pairs by gate name, each between -1 and 1; empty for a unit without gates.

        For monitors and plots only; scores do not use it.

        Args:
            mentions: Normed features of mentions.
            entities: Normed features of entities.

        Returns:
            ``[mentions, entities]`` for a pairwise gate, ``[mentions]`` or ``[entities]`` for a one-sided gate.
        """
        return {}

    def forward(self, mentions: Features, entities: Features) -> Tensor:
        """Score every pair from features: ``[mentions, entities]``."""
        return self.score(self.mention(mentions), self.entity(entities))


UnitFactory = Callable[[FeatureDims], Unit]
"""A unit as given in a configuration: class and arguments, except the widths, which come from the encoder."""
