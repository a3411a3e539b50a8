"""A loss that rises above its start, explodes or is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.callbacks.diagnostics.finding import Finding

START = 5
"""The loss of so many first batches is the start."""


class Place(NamedTuple):
    """Where in a run a batch stands.

    Attributes:
        step: Optimizer steps before it.
        epoch: Its epoch, from 0.
        batch: Its number in the epoch, from 0.
    """

    step: int
    epoch: int
    batch: int

    def __str__(self) -> str:
        """In words."""
        return f"step {self.step} (epoch {self.epoch}, batch {self.batch})"


class LossWatch:
    """Keeps the loss and its terms on the device and looks at many batches at once.

    Args:
        rise: Above this multiple of its start the loss counts as risen.
        steps: For so many batches without a pause it must have risen.
        explosion: Above this multiple of its start the mean of one look alone is enough.
    """

    def __init__(self, rise: float, steps: int, explosion: float) -> None:
        self.rise = rise
        self.steps = steps
        self.explosion = explosion
        self.start: float | None = None
        self._risen = 0
        self._kept: list[tuple[Place, tuple[str, ...], Tensor]] = []

    def __len__(self) -> int:
        """Batches since the last look."""
        return len(self._kept)

    def add(self, place: Place, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Keep a batch's loss and its terms; nothing waits for the device."""
        values = [loss, *terms.values()]
        row = torch.stack([value.detach().float().reshape(()).to(loss.device) for value in values])
        self._kept.append((place, tuple(terms), row))

    def summary(self) -> Tensor:
        """What the processes tell each other of the batches since the last look, float32 ``[3 + terms of the first]``.

        Mean loss, mean of the first few, number of the first batch with a value that is not finite (-1 without one),
        and for each term whether it is one.
        """
        rows = [row for _, _, row in self._kept]
        losses = torch.stack([row[0] for row in rows])
        bad = torch.stack([~row.isfinite().all() for row in rows])
        first = torch.where(bad.any(), bad.float().argmax(), -1)
        # All batches have the terms of the first but in a subclass that changes them on its way: these are not named.
        same = [row if row.shape == rows[0].shape else row[:1].expand_as(rows[0]) for row in rows]
        terms = ~torch.stack(same)[first.clamp_min(0)][1:].isfinite()
        return torch.cat([losses.mean()[None], losses[:START].mean()[None], first[None].float(), terms.float()])

    def non_finite(self, summaries: Tensor) -> Finding | None:
        """Find the first value that is not finite.

        Args:
            summaries: That of each process, ``[processes, 3 + terms]``.
        """
        rows = [row for row in summaries.tolist() if row[2] >= 0]
        if not rows:
            return None
        first = min(rows, key=lambda row: row[2])
        place, names, _ = self._kept[int(first[2])]
        # The overall score follows from the units': it is named where it is alone.
        bad = [name for name, flag in zip(names, first[3:], strict=True) if flag]
        which = [name for name in bad if name != "overall"] or bad
        if len(bad) == len(names):
            terms = "all its terms at once, so features or weights are not finite before any unit"
        else:
            terms = f"first in its terms {', '.join(which)}" if which else "its terms are finite"
        return Finding(
            "non-finite loss",
            f"The loss is not finite at {place}: {terms}. An earlier step was too large or a value overflowed. Lower "
            "the learning rate, clip gradients (--trainer.gradient_clip_val 1.0), or train in another precision "
            "(--trainer.precision 32-true); go on from the last good checkpoint (--ckpt_path).",
        )

    def look(self, summaries: Tensor) -> tuple[dict[str, float], list[Finding]]:
        """Judge the batches since the last look, and forget them.

        Args:
            summaries: That of each process, ``[processes, 3 + terms]``.

        Returns:
            The mean loss as a multiple of its start, and what was found.
        """
        mean, first = summaries[:, :2].mean(dim=0).tolist()
        batches = len(self._kept)
        last = self._kept[-1][0]
        self._kept = []
        if not (math.isfinite(mean) and math.isfinite(first)):
            return {}, []
        if self.start is None:
            self.start = first
        if self.start <= 0:
            return {}, []
        times = mean / self.start
        self._risen = self._risen + batches if times > self.rise else 0
        if times <= self.explosion and self._risen < self.steps:
            return {"loss_to_start": times}, []
        how = "explodes" if times > self.explosion else f"has been above its start for {self._risen} batches"
        text = (
            f"The loss {how}: it is {mean:.4g} up to {last}, {times:.2f} times the {self.start:.4g} it started from. "
            "Lower the learning rate, warm it up (lr_scheduler), or clip gradients (--trainer.gradient_clip_val 1.0)."
        )
        return {"loss_to_start": times}, [Finding("diverging loss", text)]
