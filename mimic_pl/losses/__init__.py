"""Training losses: the published one, and others to add to it or replace it."""

from mimic_pl.losses.assignment import AssignmentLoss
from mimic_pl.losses.intra_modal import IntraModalLoss
from mimic_pl.losses.loss import Loss, same_gold
from mimic_pl.losses.symmetric import SymmetricLoss
from mimic_pl.losses.unit_consistent import UnitConsistentLoss

__all__ = ["AssignmentLoss", "IntraModalLoss", "Loss", "SymmetricLoss", "UnitConsistentLoss", "same_gold"]
