"""Detects a loss that rises above its initial value, explodes, or is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.callbacks.diagnostics.finding import Finding

START = 5
"""Number of first batches whose mean loss is the initial loss."""


class BatchPosition(NamedTuple):
    """Position of a batch in a run.

    Attributes:
        step: Optimizer steps before it.
        epoch: Its epoch, from 0.
        batch: Its number in the epoch, from 0.
    """

    step: int
    epoch: int
    batch: int

    def __str__(self) -> str:
        """Human-readable form."""
        return f"step {self.step} (epoch {self.epoch}, batch {self.batch})"


class LossWatch:
    """Records the loss and its terms on the device, and checks many batches at once.

    Args:
        rise: Multiple of the initial loss above which the loss has risen.
        batches: Number of consecutive batches for which it must have risen.
        explosion: Multiple of the initial loss above which a single check is enough.
    """

    def __init__(self, rise: float, batches: int, explosion: float) -> None:
        self.rise = rise
        self.batches = batches
        self.explosion = explosion
        self.start: float | None = None
        self._risen = 0
        self._recorded: list[tuple[BatchPosition, tuple[str, ...], Tensor]] = []

    def __len__(self) -> int:
        """Batches since the last check."""
        return len(self._recorded)

    def add(self, position: BatchPosition, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Record a batch's loss and its terms, without synchronising the device."""
        values = [loss, *terms.values()]
        row = torch.stack([value.detach().float().reshape(()).to(loss.device) for value in values])
        self._recorded.append((position, tuple(terms), row))

    def summary(self) -> Tensor:
        """Summary of the batches since the last check for gathering, float32 ``[3 + terms of the first batch]``.

        It contains the mean loss, the mean of the first few batches, the number of the first batch with a non-finite
        value (-1 without one), and for each term whether it is non-finite there.
        """
        rows = [row for _, _, row in self._recorded]
        losses = torch.stack([row[0] for row in rows])
        bad = torch.stack([~row.isfinite().all() for row in rows])
        first = torch.where(bad.any(), bad.float().argmax(), -1)
        # All batches have the terms of the first, except if a subclass changes them: those are not named.
        same = [row if row.shape == rows[0].shape else row[:1].expand_as(rows[0]) for row in rows]
        terms = ~torch.stack(same)[first.clamp_min(0)][1:].isfinite()
        return torch.cat([losses.mean()[None], losses[:START].mean()[None], first[None].float(), terms.float()])

    def non_finite(self, summaries: Tensor) -> Finding | None:
        """Find the first non-finite value.

        Args:
            summaries: Summaries of all processes, ``[processes, 3 + terms]``.
        """
        rows = [row for row in summaries.tolist() if row[2] >= 0]
        if not rows:
            return None
        first = min(rows, key=lambda row: row[2])
        position, names, _ = self._recorded[int(first[2])]
        # The overall score is computed from those of the units: it is named only if they are finite.
        bad = [name for name, flag in zip(names, first[3:], strict=True) if flag]
        which = [name for name in bad if name != "overall"] or bad
        if len(bad) == len(names):
            terms = "all its terms at once, so features or weights are not finite already before the units"
        else:
            terms = f"first in its terms {', '.join(which)}" if which else "its terms are finite"
        return Finding(
            "non-finite loss",
            f"The loss is not finite at {position}: {terms}. An earlier step was too large or a value overflowed. "
            "Lower the learning rate, clip gradients (--trainer.gradient_clip_val 1.0), or train in another precision "
            "(--trainer.precision 32-true); resume from the last good checkpoint (--ckpt_path).",
        )

    def check(self, summaries: Tensor) -> tuple[dict[str, float], list[Finding]]:
        """Check the batches since the last check, and discard them.

        Args:
            summaries: Summaries of all processes, ``[processes, 3 + terms]``.

        Returns:
            The mean loss as a multiple of the initial loss, and the findings.
        """
        mean, first = summaries[:, :2].mean(dim=0).tolist()
        batches = len(self._recorded)
        last = self._recorded[-1][0]
        self._recorded = []
        if not (math.isfinite(mean) and math.isfinite(first)):
            return {}, []
        if self.start is None:
            self.start = first
        if self.start <= 0:
            return {}, []
        times = mean / self.start
        self._risen = self._risen + batches if times > self.rise else 0
        if times <= self.explosion and self._risen < self.batches:
            return {"loss_to_start": times}, []
        how = "explodes" if times > self.explosion else f"was above its initial value for {self._risen} batches"
        text = (
            f"The loss {how}: its mean up to {last} is {mean:.4g}, {times:.2f} times the initial {self.start:.4g}. "
            "Lower the learning rate, warm it up (lr_scheduler), or clip gradients (--trainer.gradient_clip_val 1.0)."
        )
        return {"loss_to_start": times}, [Finding("diverging loss", text)]
