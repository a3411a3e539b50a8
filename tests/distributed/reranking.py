"""A third-party matcher that reranks."""

from __future__ import annotations

from mimic_pl.units import Matcher


class Central(Matcher):
    """Prefers entities close to the others in the candidate list."""

    def rerank(self, mentions, entities, scores):
        fused = entities["cross_modal"]["fused"]  # [mentions, k, width]
        distance = (fused - fused.mean(dim=1, keepdim=True)).square().sum(dim=2)
        return scores["overall"] - distance
