"""What a loss sees of a training batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.features import Features


class Rows(NamedTuple):
    """Mentions and the entities that they are scored against.

    Attributes:
        scores: Named scores ``[mentions, columns]``, ``overall`` and each unit's: column j is the gold of mention j,
            the columns behind the golds are further negatives.
        same_gold: Where a column holds a right answer of the mention once more, bool ``[mentions, columns]``; never on
            the diagonal. What is right cannot be a negative.
    """

    scores: Mapping[str, Tensor]
    same_gold: Tensor


class LossInputs:
    """A training batch as a loss sees it: the batch of all processes, where there are several.

    Args:
        scores: Scores of this process's mentions; see :attr:`scores`.
        mentions: Features of this process's mentions.
        entities: Features of this process's entities.
        same_gold: Of this process's mentions; see :attr:`same_gold`.
        gather: Gives the same of all processes, its own mentions first; collective. Called once, where it is asked for.
        own_weight: What a mean over this process's mentions counts; see :attr:`own_weight`.

    Attributes:
        own: The rows of this process's mentions, with the columns of all processes. A loss that is a mean over
            mentions, each by itself, needs no more, and nothing is exchanged for it: it returns ``own_weight`` times
            that mean.
        own_weight: 1 for a single process; otherwise what makes the processes' means that of the whole batch.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        mentions: Features,
        entities: Features,
        same_gold: Tensor,
        gather: Callable[[], tuple[Mapping[str, Tensor], Features, Features, Tensor]] | None = None,
        own_weight: float = 1.0,
    ) -> None:
        self.own = Rows(scores, same_gold)
        self.own_weight = own_weight
        self._gather = gather or (lambda: (scores, mentions, entities, same_gold))

    @cached_property
    def _all(self) -> tuple[Mapping[str, Tensor], Features, Features, Tensor]:
        return self._gather()

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """Named scores ``[mentions, columns]``, ``overall`` and each unit's.

        Column j is the gold of mention j. Columns behind the golds are further negatives: hard ones, where they are
        mined. :meth:`square` leaves these out.
        """
        return self._all[0]

    @property
    def mentions(self) -> Features:
        """Features of the mentions as the encoder yields them, before the shared norms."""
        return self._all[1]

    @property
    def entities(self) -> Features:
        """Features of the entities in the columns."""
        return self._all[2]

    @property
    def same_gold(self) -> Tensor:
        """Where a column holds a right answer of the mention once more, bool ``[mentions, columns]``."""
        return self._all[3]

    def square(self, name: str = "overall") -> Tensor:
        """A score of the mentions with their golds alone, ``[mentions, mentions]``: the diagonal is right.

        What is right elsewhere (:attr:`same_gold`) is minus infinity. Its transpose contrasts the mentions of an
        entity.
        """
        size = len(self.same_gold)
        scores = self.scores[name][:, :size]
        # A loss is not computed in half precision.
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(
            self.same_gold[:, :size], -torch.inf
        )
