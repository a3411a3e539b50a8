"""A unit, or the encoder, that gets no gradient or next to none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimic_pl.callbacks.diagnostics.finding import Finding, listed

WHOLE = "whole"
"""The norm over all parameters."""


def gradient_norms(whole: nn.Module, parts: Mapping[str, nn.Module]) -> dict[str, float]:
    """Norms of the gradients as they are now: of all parameters (``whole``) and of each part's.

    Parts without trainable parameters are left out; a part that got no gradient has norm 0. The device is waited for
    once.

    Args:
        whole: The model.
        parts: Modules of it by name.
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
    """Compares each part's gradient norm with the whole's over several looks.

    Args:
        share: Below this share of the whole's norm a part's gradient has vanished.
        looks: In so many looks behind each other.
    """

    def __init__(self, share: float, looks: int) -> None:
        self.share = share
        self.looks = looks
        self._seen: dict[str, list[float]] = {}

    def look(self, norms: Mapping[str, float]) -> tuple[dict[str, float], list[Finding]]:
        """Judge one step's gradients.

        Args:
            norms: As :func:`gradient_norms` makes them.

        Returns:
            Each part's share of the whole's norm, and what was found.
        """
        whole = norms[WHOLE]
        if not all(math.isfinite(norm) for norm in norms.values()):
            first = [name for name, norm in norms.items() if name != WHOLE and not math.isfinite(norm)]
            text = (
                f"The gradient of {listed(first or ['the model'])} is not finite. The next step ruins the weights, "
                "unless the precision's loss scaling skips it. Try a lower learning rate or --trainer.precision 32-true"
                " or bf16-mixed; clipping does not help against NaN."
            )
            return {}, [Finding("non-finite gradient", text)]
        shares = {name: norm / whole if whole else 0.0 for name, norm in norms.items() if name != WHOLE}
        findings = []
        for name, share in shares.items():
            seen = self._seen[name] = [*self._seen.get(name, []), share][-self.looks :]
            if len(seen) == self.looks and max(seen) < self.share:
                findings.append(Finding(f"vanishing gradient {name}", self._text(name, max(seen))))
        return shares, findings

    def _text(self, name: str, largest: float) -> str:
        if largest == 0:
            return (
                f"The weights of {name} have got no gradient at all in the last {self.looks} looks: it does not learn. "
                "Its score does not reach the loss (a loss weight of 0, a combine() that leaves it out, a detach()), "
                "or its inputs are constant; freeze it or leave it out if that is meant."
            )
        return (
            f"The gradient of {name} has vanished: at most {largest:.1e} of the whole model's norm in the last "
            f"{self.looks} looks. It hardly learns. Try a larger loss weight for it or a learning rate of its own "
            "(parameter_groups), and look at its inputs: constant features have no gradient to give."
        )
