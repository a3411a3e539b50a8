"""What an interaction unit is: three functions, so that all one-sided work is done once per mention and per entity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features

State = dict[str, Tensor]
"""What a unit keeps of one side: named tensors whose first dimension counts mentions or entities."""


class Unit(nn.Module, ABC):
    """A part of the model that scores every pair of a mention and an entity.

    A subclass computes in :meth:`mention` and :meth:`entity` all that depends on one side only, and in :meth:`score`
    what truly depends on the pair. Training, ranking and linking call these same three functions, and the entity index
    stores what :meth:`entity` returns: keep it small.

    Args:
        dims: Widths of the features that the encoder yields.
    """

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

    def forward(self, mentions: Features, entities: Features) -> Tensor:
        """Score every pair from features: ``[mentions, entities]``."""
        return self.score(self.mention(mentions), self.entity(entities))


UnitFactory = Callable[[FeatureDims], Unit]
"""How a configuration names a unit: its class and arguments, all but the widths, which the encoder decides."""
