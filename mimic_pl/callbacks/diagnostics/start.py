"""Detects a unit that training has made worse than it was before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mimic_pl.callbacks.diagnostics.finding import Finding
from mimic_pl.callbacks.diagnostics.scores import OVERALL


class StartWatch:
    """Compares each unit's MRR with the one that it had before the first training step.

    The overall score is not compared: its weights may be fitted later.

    Args:
        margin: A unit is worse if its MRR is lower by more than this.

    Attributes:
        metrics: MRR and H@1 before the first step by unit; empty if they are unknown.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.metrics: dict[str, tuple[float, float]] = {}

    def keep(self, mrr: Mapping[str, float], hits: Mapping[str, float]) -> None:
        """Keep the metrics before the first step, by score."""
        self.metrics = {name: (value, hits.get(name, 0.0)) for name, value in mrr.items() if name != OVERALL}

    def check(
        self, mrr: Mapping[str, float], hits: Mapping[str, float], mentions: int
    ) -> tuple[dict[str, float], list[Finding]]:
        """Check a validation.

        Args:
            mrr: MRR by score.
            hits: H@1 by score.
            mentions: Number of mentions with a gold in the knowledge base.

        Returns:
            Each unit's MRR as a multiple of the initial one, and the findings.
        """
        figures, findings = {}, []
        for name, (before, hits_before) in self.metrics.items():
            if name not in mrr or not before:
                continue
            figures[f"mrr_to_start/{name}"] = mrr[name] / before
            # Reciprocal ranks lie between 0 and 1, and so their variance is at most m (1 - m).
            noise = 2 * math.sqrt(before * (1 - before) / max(1, mentions))
            if before - mrr[name] > max(self.margin, noise):
                text = (
                    f"Training has made {name} worse than it was before: its MRR fell from {before:.4f} to "
                    f"{mrr[name]:.4f}, its H@1 from {hits_before:.4f} to {hits.get(name, 0.0):.4f}. Lower the learning "
                    "rate or warm it up (lr_scheduler), freeze what was pretrained (--model.encoder.freeze true), or "
                    "give the unit no loss of its own (weights of the loss) if the pretrained one is good enough."
                )
                findings.append(Finding(f"worse than before {name}", text))
        return figures, findings
