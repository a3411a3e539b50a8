"""What an interaction unit is: three functions, so that all one-sided work is done once per mention and per entity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimic_pl.construction import Recorded
from mimic_pl.features import FeatureDims, Features
from mimic_pl.loss_inputs import LossInputs

State = Mapping[str, Tensor]
"""What a unit keeps of one side: named tensors whose first dimension counts mentions or entities."""

_DIAGONAL = 32
"""Aligned pairs that a unit without :meth:`Unit.pairs` of its own scores at once, as the diagonal of a square."""


class Bounds(NamedTuple):
    """Two tensors between which the scores of a block lie, both ``[mentions, entities]``.

    Where a score costs no more than a bound, both are the score itself, one and the same tensor.
    """

    lower: Tensor
    upper: Tensor

    @property
    def exact(self) -> bool:
        """Whether these are the scores themselves."""
        return self.lower is self.upper


class Unit(Recorded, nn.Module, ABC):
    """A part of the model that scores every pair of a mention and an entity.

    A unit needs three functions. :meth:`mention` and :meth:`entity` compute all that depends on one side only, and
    :meth:`score` what truly depends on the pair. Training, ranking and linking call these same three, and the entity
    index stores what :meth:`entity` returns: keep it small.

    The others are optional. :meth:`bounds` (with :meth:`prepare`) and :meth:`pairs` make ranking faster and change no
    rank: a unit whose :meth:`score` is a few products needs neither. :meth:`loss` adds a term to the training loss, and
    :meth:`gates` shows gates to monitors and plots.

    :func:`~mimic_pl.units.check_unit` tries whether a unit keeps what it promises.

    Args:
        dims: Widths of the features that the encoder yields.

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
    """Whether a score depends on the text tokens behind a text's end. Where no unit's does, texts need not be padded to
    one length."""

    expensive: bool = False
    """Whether a score costs far more than its bounds, so that ranking may do without this unit's own ranks."""

    def __init__(self, dims: FeatureDims) -> None:
        super().__init__()
        self.dims = dims

    @abstractmethod
    def mention(self, features: Features) -> State:
        """Return the mention side's state from normed features: tensors ``[mentions, ...]``."""

    @abstractmethod
    def entity(self, features: Features) -> State:
        """Return the entity side's state from normed features: tensors ``[entities, ...]``."""

    @abstractmethod
    def score(self, mentions: State, entities: State) -> Tensor:
        """Score every pair: ``[mentions, entities]``, higher is better."""

    def prepare(self, mentions: State) -> State:
        """Add to the mentions' state what :meth:`bounds` needs of it; called once before a pass over the entities."""
        return mentions

    def bounds(self, mentions: State, entities: State) -> Bounds:
        """Bound every pair's score, ``[mentions, entities]``; by default with the score itself.

        The bounds must hold but for rounding errors.
        """
        score = self.score(mentions, entities)
        return Bounds(score, score)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """Score aligned pairs, ``[pairs]``: mention i with entity i.

        Called in float32 for the pairs that bounds leave open, and in float64 for near ties.
        """
        count = len(next(iter(mentions.values())))  # one tensor: the others may not have been copied yet
        scores = []
        for start in range(0, max(count, 1), _DIAGONAL):
            rows = slice(start, start + _DIAGONAL)
            sides = ({name: tensor[rows] for name, tensor in side.items()} for side in (mentions, entities))
            scores.append(self.score(*sides).diagonal())
        return torch.cat(scores)

    def loss(self, inputs: LossInputs) -> Tensor | None:
        """A term of the loss that the unit brings along, a scalar: a regulariser, an auxiliary task; none by default.

        Args:
            inputs: Scores and features of the training batch; ``inputs.scores`` has the unit's own by its name.
        """
        return None

    def gates(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """How far the unit's gates are open for a block of pairs, by name, each value between -1 and 1.

        For monitors and plots; no score reads it. A unit without gates, the default, has none.

        Args:
            mentions: Normed features of mentions.
            entities: Normed features of entities.

        Returns:
            ``[mentions, entities]`` for a gate of pairs, ``[mentions]`` or ``[entities]`` for a gate of one side.
        """
        return {}

    def forward(self, mentions: Features, entities: Features) -> Tensor:
        """Score every pair from features: ``[mentions, entities]``."""
        return self.score(self.mention(mentions), self.entity(entities))


UnitFactory = Callable[[FeatureDims], Unit]
"""How a configuration names a unit: its class and arguments, all but the widths, which the encoder decides."""
