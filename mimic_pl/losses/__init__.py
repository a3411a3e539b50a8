"""Losses of a training batch: the published one, and others that may be added to it or take its place."""

from mimic_pl.losses.assignment import AssignmentLoss
from mimic_pl.losses.intra_modal import IntraModalLoss
from mimic_pl.losses.loss import Loss, same_gold
from mimic_pl.losses.symmetric import SymmetricLoss
from mimic_pl.losses.unit_consistent import UnitConsistentLoss

__all__ = ["AssignmentLoss", "IntraModalLoss", "Loss", "SymmetricLoss", "UnitConsistentLoss", "same_gold"]
