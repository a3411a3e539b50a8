"""Inputs of a training loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.features import Features


class Rows(NamedTuple):
    """Mentions and the entities that they are scored against.

    Attributes:
        scores: Scores by name ``[mentions, columns]``, ``overall`` and each unit's: column j is the gold of mention j,
            and the columns after the golds are hard negatives.
        same_gold: Which columns other than the diagonal contain a gold of the mention, bool ``[mentions, columns]``:
            false negatives.
    """

    scores: Mapping[str, Tensor]
    same_gold: Tensor


class LossInputs:
    """A training batch as passed to a loss; with several processes, the global batch.

    Args:
        scores: Scores of the local mentions; see :attr:`scores`.
        mentions: Features of the local mentions.
        entities: Features of the local entities.
        same_gold: False negatives of the local mentions; see :attr:`same_gold`.
        gather: Returns these four for all processes, local mentions first; collective. Called once, on first access.
        local_weight: Weight of a mean over the local mentions; see :attr:`local_weight`.

    Attributes:
        local: Rows of the local mentions, with the columns of all processes. A loss that is a mean over independent
            mentions only needs these, without communication: it returns ``local_weight`` times that mean.
        local_weight: 1 for a single process; otherwise the weight with which the mean of the processes' means is the
            mean over the global batch.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        mentions: Features,
        entities: Features,
        same_gold: Tensor,
        gather: Callable[[], tuple[Mapping[str, Tensor], Features, Features, Tensor]] | None = None,
        local_weight: float = 1.0,
    ) -> None:
        self.local = Rows(scores, same_gold)
        self.local_weight = local_weight
        self._gather = gather or (lambda: (scores, mentions, entities, same_gold))

    def only(self, names: Iterable[str]) -> LossInputs:
        """The same batch with the scores of these names alone."""
        kept = tuple(names)
        some = copy.copy(self)
        some.__dict__.pop("_all", None)
        some.local = self.local._replace(scores={name: self.local.scores[name] for name in kept})

        def gather() -> tuple[Mapping[str, Tensor], Features, Features, Tensor]:
            scores, mentions, entities, same_gold = self._all
            return {name: scores[name] for name in kept}, mentions, entities, same_gold

        some._gather = gather
        return some

    @cached_property
    def _all(self) -> tuple[Mapping[str, Tensor], Features, Features, Tensor]:
        return self._gather()

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """Scores by name ``[mentions, columns]``, ``overall`` and each unit's.

        Column j is the gold of mention j. Columns after the golds are mined hard negatives, which :meth:`square` leaves
        out.
        """
        return self._all[0]

    @property
    def mentions(self) -> Features:
        """Features of the mentions from the encoder, before the shared norms."""
        return self._all[1]

    @property
    def entities(self) -> Features:
        """Features of the columns' entities, before the shared norms."""
        return self._all[2]

    @property
    def same_gold(self) -> Tensor:
        """Which columns other than the diagonal contain a gold of the mention, bool ``[mentions, columns]``."""
        return self._all[3]

    def square(self, name: str = "overall") -> Tensor:
        """One score of mentions x golds, ``[mentions, mentions]``, at least float32, with targets on the diagonal.

        False negatives (:attr:`same_gold`) are minus infinity. Transpose it for a loss over the mentions of an entity.
        """
        size = len(self.same_gold)
        return at_least_float32(self.scores[name][:, :size]).masked_fill(self.same_gold[:, :size], -torch.inf)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, since losses are not computed in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
