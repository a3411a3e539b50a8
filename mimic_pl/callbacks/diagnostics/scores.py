"""The overall score collapses to one unit's, and H@1 stalls while MRR rises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mimic_pl.callbacks.diagnostics.finding import Finding, listed

OVERALL = "overall"

_FEW = 20
"""Mentions below which a share of them says nothing."""

_ALIKE = 0.05
"""Ranks that differ by no more than this share of the larger are alike; ranks below 20 must be equal."""


class AgreementCount:
    """Counts, over the mentions of a validation, how many have the same rank overall as by a unit alone.

    Mentions whose gold stands first by both are left out: two scores that are both right need not be one.
    """

    def __init__(self) -> None:
        self.mentions: Tensor | int = 0
        self._counts: dict[str, Tensor] = {}

    def add(self, ranks: Mapping[str, Tensor]) -> None:
        """Count a batch; ranks are 1-based, 0 without a gold, int64 ``[mentions]``."""
        overall = ranks[OVERALL]
        known = overall > 0
        self.mentions = self.mentions + known.sum()
        for name, rank in ranks.items():
            if name != OVERALL:
                open_ = known & ((overall > 1) | (rank > 1))
                alike = open_ & ((overall - rank).abs() <= _ALIKE * torch.maximum(overall, rank))
                counted = torch.stack([alike.sum(), open_.sum()])
                self._counts[name] = self._counts.get(name, torch.zeros_like(counted)) + counted

    @property
    def names(self) -> tuple[str, ...]:
        """The units that were counted."""
        return tuple(self._counts)

    def summary(self) -> Tensor:
        """What is summed over processes: all mentions, then those alike and those compared by unit, int64."""
        return torch.cat([torch.as_tensor(self.mentions).reshape(1), *self._counts.values()])


class CollapseWatch:
    """Looks for units at chance, and for a unit that decides the overall ranking alone.

    Args:
        margin: An MRR within so much of a random ranking's is at chance.
        agreement: From this share of like ranks on the overall ranking is the unit's.
        validations: It must have been so in as many validations behind each other.
    """

    def __init__(self, margin: float, agreement: float, validations: int) -> None:
        self.margin = margin
        self.agreement = agreement
        self.validations = validations
        self.streaks: dict[str, int] = {}

    def look(
        self,
        mrr: Mapping[str, float],
        hits: Mapping[str, float],
        alike: Mapping[str, tuple[int, int]],
        entities: int,
        mentions: int,
    ) -> tuple[dict[str, float], list[Finding]]:
        """Judge a validation.

        Args:
            mrr: MRR by score, ``overall`` and the ranked units.
            hits: H@1 by score.
            alike: By unit: mentions with the same rank overall, and mentions compared.
            entities: In the knowledge base.
            mentions: With a gold in it.

        Returns:
            Figures for the curves, and what was found.
        """
        units = [name for name in mrr if name != OVERALL]
        shares = {name: same / of for name, (same, of) in alike.items() if of >= _FEW}
        figures = {f"agreement/{name}": share for name, share in shares.items()}
        if len(units) < 2:
            return figures, []
        chance, limit = self._chance(entities, mentions)
        figures |= {f"mrr_to_chance/{name}": mrr[name] / chance for name in units}
        lost = [name for name in units if self._again(f"chance {name}", mrr[name] <= limit < mrr[OVERALL])]
        findings = []
        left = [name for name in units if mrr[name] > limit]
        if lost and left:
            values = ", ".join(f"{name} H@1 {hits.get(name, 0):.4f} and MRR {mrr[name]:.4f}" for name in lost)
            only = f"The overall score has collapsed to {left[0]} alone: " if len(left) == 1 else ""
            findings.append(
                Finding(
                    f"at chance {listed(lost)}",
                    f"{only}{listed(lost)} rank{'s' * (len(lost) == 1)} no better than chance ({values}; a random "
                    f"ranking of {entities:,} entities has {1 / entities:.4f} and {chance:.4f}), while "
                    + ", ".join(f"{name} has MRR {mrr[name]:.4f}" for name in left)
                    + ". Look at the inputs of what is at chance (are there images? are they read?), give it a "
                    "larger loss weight or learning rate, or leave the unit out.",
                )
            )
        decisive = [name for name, share in shares.items() if share >= self.agreement]
        for name, share in shares.items():
            # Where several have the overall ranking they agree with each other: none of them decides alone.
            if self._again(f"agreement {name}", decisive == [name]):
                others = listed([other for other in units if other != name])
                findings.append(
                    Finding(
                        f"overall is {name}",
                        f"The overall ranking is {name}'s: {share:.0%} of the mentions that are not first by both have "
                        f"the same rank overall as by {name} alone, so what {others} learned changes nothing. Their "
                        "scores may be too small beside it: give them a larger loss weight, or combine the scores with "
                        "weights (Matcher.combine).",
                    )
                )
        return figures, findings

    def _again(self, what: str, seen: bool) -> bool:
        """Whether it has now been seen in enough validations behind each other."""
        self.streaks[what] = self.streaks.get(what, 0) + 1 if seen else 0
        return self.streaks[what] >= self.validations

    def _chance(self, entities: int, mentions: int) -> tuple[float, float]:
        """MRR of a random ranking, and up to where an MRR over so many mentions is one's."""
        inverse = 1 / torch.arange(1, entities + 1, dtype=torch.float64)
        mean = inverse.mean().item()
        deviation = math.sqrt(max(0.0, inverse.square().mean().item() - mean**2) / max(1, mentions))
        return mean, mean + max(self.margin, 3 * deviation)


class StallWatch:
    """Looks for an H@1 that stands still over validations in which MRR rises: golds come near the top, not to it.

    Args:
        validations: Over so many, the first of them included.
        mrr: MRR must have risen by this much.
        share: H@1 has stalled if it rose by less than this share of it.
    """

    def __init__(self, validations: int, mrr: float, share: float) -> None:
        self.validations = validations
        self.mrr = mrr
        self.share = share
        self.history: list[tuple[float, float]] = []

    def look(self, hits: float, mrr: float) -> tuple[dict[str, float], list[Finding]]:
        """Judge a validation by its overall H@1 and MRR, together with those before it."""
        self.history = [*self.history, (hits, mrr)][-self.validations :]
        (hits_before, mrr_before), *later = self.history
        risen = mrr - mrr_before
        gained = max((h for h, _ in later), default=hits) - hits_before
        figures = {"hits@1_rise": hits - hits_before, "mrr_rise": risen}
        if len(self.history) < self.validations or risen < self.mrr or gained >= self.share * risen:
            return figures, []
        text = (
            f"H@1 stalls while MRR rises: over {self.validations} validations MRR went from {mrr_before:.4f} to "
            f"{mrr:.4f}, H@1 from {hits_before:.4f} to {hits:.4f}. Golds come near the top but not to it: near "
            "doubles win. Try larger batches, a lower loss temperature, hard negatives, or masking false negatives "
            "(loss.mask_false_negatives), and look whether the first candidates are right answers themselves."
        )
        return figures, [Finding("stalling H@1", text)]
