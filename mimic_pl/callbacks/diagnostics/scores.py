"""Detects an overall score that collapses to one unit, and an H@1 that stalls while MRR rises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mimic_pl.callbacks.diagnostics.finding import Finding, enumerated

OVERALL = "overall"

_MIN_MENTIONS = 20
"""Minimum number of mentions for a meaningful fraction."""

_TOLERANCE = 0.05
"""Ranks agree if they differ by at most this fraction of the larger one; ranks below 20 must be equal."""


class AgreementCount:
    """Counts the mentions of a validation with the same rank overall and by a single unit.

    Mentions whose gold is first by both are excluded: two scores may both be right without being the same.
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
                compared = known & ((overall > 1) | (rank > 1))
                agreeing = compared & ((overall - rank).abs() <= _TOLERANCE * torch.maximum(overall, rank))
                counted = torch.stack([agreeing.sum(), compared.sum()])
                self._counts[name] = self._counts.get(name, torch.zeros_like(counted)) + counted

    @property
    def names(self) -> tuple[str, ...]:
        """The counted units."""
        return tuple(self._counts)

    def summary(self) -> Tensor:
        """Counts to sum over processes, int64: all mentions, then agreeing and compared ones for each unit."""
        return torch.cat([torch.as_tensor(self.mentions).reshape(1), *self._counts.values()])


class CollapseWatch:
    """Detects units at chance, and a unit that determines the overall ranking alone.

    Args:
        margin: Maximum distance to the MRR of a random ranking at which an MRR is at chance.
        agreement: Fraction of equal ranks from which on a unit determines the overall ranking.
        validations: Number of consecutive validations in which it must be observed.
    """

    def __init__(self, margin: float, agreement: float, validations: int) -> None:
        self.margin = margin
        self.agreement = agreement
        self.validations = validations
        self.streaks: dict[str, int] = {}

    def check(
        self,
        mrr: Mapping[str, float],
        hits: Mapping[str, float],
        agreeing: Mapping[str, tuple[int, int]],
        entities: int,
        mentions: int,
    ) -> tuple[dict[str, float], list[Finding]]:
        """Check a validation.

        Args:
            mrr: MRR by score, ``overall`` and the ranked units.
            hits: H@1 by score.
            agreeing: By unit, the number of mentions with the same rank overall, and of compared mentions.
            entities: Number of entities in the knowledge base.
            mentions: Number of mentions with a gold in it.

        Returns:
            Values for the curves, and the findings.
        """
        units = [name for name in mrr if name != OVERALL]
        shares = {name: same / of for name, (same, of) in agreeing.items() if of >= _MIN_MENTIONS}
        figures = {f"agreement/{name}": share for name, share in shares.items()}
        if len(units) < 2:
            return figures, []
        chance, limit = self._chance(entities, mentions)
        figures |= {f"mrr_to_chance/{name}": mrr[name] / chance for name in units}
        at_chance = [name for name in units if self._repeated(f"chance {name}", mrr[name] <= limit < mrr[OVERALL])]
        findings = []
        useful = [name for name in units if mrr[name] > limit]
        if at_chance and useful:
            values = ", ".join(f"{name} H@1 {hits.get(name, 0):.4f} and MRR {mrr[name]:.4f}" for name in at_chance)
            only = f"The overall score has collapsed to {useful[0]} alone: " if len(useful) == 1 else ""
            findings.append(
                Finding(
                    f"at chance {enumerated(at_chance)}",
                    f"{only}{enumerated(at_chance)} rank{'s' * (len(at_chance) == 1)} no better than chance ({values}; "
                    f"a random ranking of {entities:,} entities has {1 / entities:.4f} and {chance:.4f}), while "
                    + ", ".join(f"{name} has MRR {mrr[name]:.4f}" for name in useful)
                    + ". Check the inputs of units at chance (are there images? can they be read?), give them a larger "
                    "loss weight or learning rate, or remove them.",
                )
            )
        decisive = [name for name, share in shares.items() if share >= self.agreement]
        for name, share in shares.items():
            # If several units have the overall ranking, they agree with each other, and none determines it alone.
            if self._repeated(f"agreement {name}", decisive == [name]):
                others = enumerated([other for other in units if other != name])
                findings.append(
                    Finding(
                        f"overall is {name}",
                        f"The overall ranking is {name}'s: {share:.0%} of the mentions that are not first by both have "
                        f"the same rank overall as by {name} alone, so {others} do not contribute. Their scores may be "
                        "too small in comparison: give them a larger loss weight, or combine the scores with weights "
                        "(Matcher.combine).",
                    )
                )
        return figures, findings

    def _repeated(self, signature: str, observed: bool) -> bool:
        """Whether a signature was observed in enough consecutive validations."""
        self.streaks[signature] = self.streaks.get(signature, 0) + 1 if observed else 0
        return self.streaks[signature] >= self.validations

    def _chance(self, entities: int, mentions: int) -> tuple[float, float]:
        """MRR of a random ranking, and the largest MRR that counts as chance for this number of mentions."""
        inverse = 1 / torch.arange(1, entities + 1, dtype=torch.float64)
        mean = inverse.mean().item()
        deviation = math.sqrt(max(0.0, inverse.square().mean().item() - mean**2) / max(1, mentions))
        return mean, mean + max(self.margin, 3 * deviation)


class StallWatch:
    """Detects an H@1 that stalls while MRR rises: golds approach the top rank but do not reach it.

    Args:
        validations: Number of validations to compare over, including the first.
        mrr: Minimum rise of MRR.
        share: H@1 stalls if it rises by less than this fraction of the rise of MRR.
    """

    def __init__(self, validations: int, mrr: float, share: float) -> None:
        self.validations = validations
        self.mrr = mrr
        self.share = share
        self.history: list[tuple[float, float]] = []

    def check(self, hits: float, mrr: float) -> tuple[dict[str, float], list[Finding]]:
        """Check the overall H@1 and MRR of a validation, together with the previous ones."""
        self.history = [*self.history, (hits, mrr)][-self.validations :]
        (hits_before, mrr_before), *later = self.history
        risen = mrr - mrr_before
        gained = max((h for h, _ in later), default=hits) - hits_before
        figures = {"hits@1_rise": hits - hits_before, "mrr_rise": risen}
        if len(self.history) < self.validations or risen < self.mrr or gained >= self.share * risen:
            return figures, []
        text = (
            f"H@1 stalls while MRR rises: over {self.validations} validations MRR went from {mrr_before:.4f} to "
            f"{mrr:.4f}, H@1 from {hits_before:.4f} to {hits:.4f}. Golds rank near the top but not first: near "
            "duplicates rank higher. Try larger batches, a lower loss temperature, hard negatives, or masking false "
            "negatives (loss.mask_false_negatives), and check whether the top candidates are correct, too."
        )
        return figures, [Finding("stalling H@1", text)]
