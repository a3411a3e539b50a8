"""Ranked lists of mentions, as they are and with the golds taken out of the knowledge base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError, DataError
from mimic_pl.links import Links
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.ranking import Ranking


class ScoredLists(NamedTuple):
    """Scores of each mention's top entities, and which of them are golds.

    Taking a mention's golds out of the knowledge base leaves the scores of all other entities as they are, so its list
    without golds is the list itself with the golds removed and the next entities moved up. A list of k entities needs
    the first k + number of golds for that.

    Attributes:
        scores: Overall scores, best first, ``[mentions, n]``; padded with -inf where there are fewer entities.
        is_gold: Which are golds of the mention, bool ``[mentions, n]``.
        gold_in_kb: Whether a gold is in the knowledge base at all, in the list or below it, bool ``[mentions]``; by
            default those with a gold in the list.
    """

    scores: Tensor
    is_gold: Tensor
    gold_in_kb: Tensor | None = None

    @staticmethod
    def of_ranking(ranking: Ranking, gold: Tensor, num_entities: int) -> ScoredLists:
        """Lists of a :class:`~mimic_pl.Ranker`.

        Args:
            ranking: Ranking of a batch of mentions.
            gold: Order numbers of their golds in the knowledge base, int64 ``[mentions, golds]``, padded with -1.
            num_entities: Number of entities that were ranked: whether a list is complete.
        """
        order, scores = ranking.top_entities.cpu(), ranking.top_scores["overall"].cpu().double()
        gold = gold.cpu()
        is_gold = (order[:, :, None] == gold[:, None, :]).any(dim=2)
        lists = ScoredLists(scores, is_gold, gold.ge(0).any(dim=1))
        return lists.padded(scores.shape[1] + gold.shape[1]) if scores.shape[1] >= num_entities else lists

    @staticmethod
    def of_links(links: Sequence[Links]) -> ScoredLists:
        """Lists of linked mentions, whose golds, if they have any, are in the knowledge base.

        Args:
            links: Links of the mentions, each with top_k + number of golds candidates or all that there are.

        Raises:
            DataError: A mention could not be linked, or there are none.
        """
        if not links:
            raise DataError("There are no mentions to calibrate on.")
        for own in links:
            if own.mention is None or own.error is not None:
                raise DataError(f"Record {own.number} could not be linked: {own.error}") from own.error
        longest = max(map(len, links))
        scores = torch.full((len(links), longest), -torch.inf, dtype=torch.float64)
        is_gold = torch.zeros((len(links), longest), dtype=torch.bool)
        for row, own in enumerate(links):
            golds = own.mention.golds if own.mention is not None else ()
            scores[row, : len(own)] = torch.tensor([link.score for link in own], dtype=torch.float64)
            is_gold[row, : len(own)] = torch.tensor([link.entity.id in golds for link in own], dtype=torch.bool)
        known = [bool(own.mention and own.mention.golds) for own in links]
        return ScoredLists(scores, is_gold, torch.tensor(known, dtype=torch.bool))

    @property
    def known(self) -> Tensor:
        """Whether a gold is in the knowledge base, bool ``[mentions]``."""
        return self.is_gold.any(dim=1) if self.gold_in_kb is None else self.gold_in_kb

    def rows(self, chosen: Tensor) -> ScoredLists:
        """Some of the mentions, by a mask or by their rows."""
        return ScoredLists(self.scores[chosen], self.is_gold[chosen], self.known[chosen])

    def padded(self, width: int) -> ScoredLists:
        """Pad lists that contain all entities to this width."""
        missing = max(0, width - self.scores.shape[1])
        pad = torch.nn.functional.pad
        scores = pad(self.scores, (0, missing), value=-torch.inf)
        return ScoredLists(scores, pad(self.is_gold, (0, missing), value=False), self.known)

    def first(self, top_k: int) -> ScoredLists:
        """The first ``top_k`` entities of each list."""
        require_ranges({"top_k": COUNT}, {"top_k": top_k}, "")
        return ScoredLists(self.scores[:, :top_k], self.is_gold[:, :top_k], self.known)

    def without_golds(self, top_k: int) -> ScoredLists:
        """The first ``top_k`` entities of each list as they are if the golds are not in the knowledge base.

        Raises:
            ConfigError: The lists are too short for that.
        """
        missing = top_k - int((~self.is_gold).sum(dim=1).min()) if len(self.scores) else 0
        if missing > 0:
            raise ConfigError(
                f"Lists of {self.scores.shape[1]} entities are too short: without its golds, a mention has {missing} "
                f"less than the {top_k} that are calibrated. Rank top_k + number of golds entities."
            )
        order = self.is_gold.to(torch.uint8).argsort(dim=1, stable=True)[:, :top_k]
        scores = self.scores.masked_fill(self.is_gold, -torch.inf).gather(1, order)
        nothing = torch.zeros_like(scores, dtype=torch.bool)
        return ScoredLists(scores, nothing, nothing.any(dim=1))

    def held_out(self, top_k: int) -> ScoredLists:
        """Every mention as it is, and those with a gold in the knowledge base once more without their golds."""
        removed = self.rows(self.known).without_golds(top_k)
        return ScoredLists.joined([self.first(top_k), removed])

    @staticmethod
    def joined(parts: Sequence[ScoredLists]) -> ScoredLists:
        """Concatenate lists of several batches; shorter ones are padded."""
        width = max(part.scores.shape[1] for part in parts)
        padded = [part.padded(width) for part in parts]
        return ScoredLists(
            torch.cat([part.scores for part in padded]),
            torch.cat([part.is_gold for part in padded]),
            torch.cat([part.known for part in padded]),
        )
