"""Detectors of known failure signatures, which work on plain numbers, independently of the Trainer."""

from mimic_pl.callbacks.diagnostics.finding import Finding
from mimic_pl.callbacks.diagnostics.gates import GateWatch
from mimic_pl.callbacks.diagnostics.gradients import GradientWatch, gradient_norms
from mimic_pl.callbacks.diagnostics.loss import LossWatch
from mimic_pl.callbacks.diagnostics.scores import AgreementCount, CollapseWatch, StallWatch
from mimic_pl.callbacks.diagnostics.start import StartWatch

__all__ = [
    "AgreementCount",
    "CollapseWatch",
    "Finding",
    "GateWatch",
    "GradientWatch",
    "LossWatch",
    "StallWatch",
    "StartWatch",
    "gradient_norms",
]
