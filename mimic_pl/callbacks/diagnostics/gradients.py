"""Detects units, or an encoder, with no gradient or a vanishing one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.callbacks.diagnostics.finding import Finding, enumerated

WHOLE = "whole"
"""Name of the norm over all parameters."""


def gradient_norms(whole: nn.Module, parts: Mapping[str, nn.Module]) -> dict[str, float]:
    """Norms of the current gradients: of all parameters (``whole``) and of each part.

    Parts without trainable parameters are omitted; a part without gradients has norm 0. There is only one device
    synchronisation.

    Args:
        whole: The model.
        parts: Its modules by name.
    """
    norms = {WHOLE: _norm(whole)}
    norms |= {name: _norm(part) for name, part in parts.items() if any(p.requires_grad for p in part.parameters())}
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))


def _norm(module: nn.Module) -> Tensor:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trainable if parameter.grad is not None]
    device = trainable[0].device if trainable else None
    if not gradients:
        return torch.zeros((), device=device)
    return torch.nn.utils.get_total_norm(gradients).float().to(device)


class GradientWatch:
    """Compares each part's gradient norm with that of the whole model over several checks.

    Args:
        share: Fraction of the whole model's norm below which a part's gradient has vanished.
        checks: Number of consecutive checks in which it must have vanished.
    """

    def __init__(self, share: float, checks: int) -> None:
        self.share = share
        self.checks = checks
        self._history: dict[str, list[float]] = {}

    def check(self, norms: Mapping[str, float]) -> tuple[dict[str, float], list[Finding]]:
        """Check the gradients of one step.

        Args:
            norms: Norms from :func:`gradient_norms`.

        Returns:
            Each part's fraction of the whole model's norm, and the findings.
        """
        whole = norms[WHOLE]
        if not all(math.isfinite(norm) for norm in norms.values()):
            first = [name for name, norm in norms.items() if name != WHOLE and not math.isfinite(norm)]
            text = (
                f"The gradient of {enumerated(first or ['the model'])} is not finite. The next step will make the "
                "weights NaN, unless loss scaling skips it. Try a lower learning rate, or --trainer.precision 32-true "
                "or bf16-mixed; clipping does not help against NaN."
            )
            return {}, [Finding("non-finite gradient", text)]
        shares = {name: norm / whole if whole else 0.0 for name, norm in norms.items() if name != WHOLE}
        findings = []
        for name, share in shares.items():
            recent = self._history[name] = [*self._history.get(name, []), share][-self.checks :]
            if len(recent) == self.checks and max(recent) < self.share:
                findings.append(Finding(f"vanishing gradient {name}", self._text(name, max(recent))))
        return shares, findings

    def _text(self, name: str, largest: float) -> str:
        if largest == 0:
            return (
                f"The weights of {name} had no gradient at all in the last {self.checks} checks: it does not learn. "
                "Its score does not reach the loss (a loss weight of 0, a combine() that ignores it, a detach()), or "
                "its inputs are constant; freeze or remove it if this is intended."
            )
        return (
            f"The gradient of {name} has vanished: at most {largest:.1e} of the whole model's norm in the last "
            f"{self.checks} checks. It hardly learns. Try a larger loss weight or a separate learning rate for it "
            "(parameter_groups), and check its inputs: constant features yield no gradient."
        )
