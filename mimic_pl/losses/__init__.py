"""Losses of a training batch: the published one, and terms that may be added to it."""

from mimic_pl.losses.assignment import AssignmentLoss
from mimic_pl.losses.intra_modal import IntraModalLoss
from mimic_pl.losses.symmetric import SymmetricLoss
from mimic_pl.losses.term import LossTerm, same_gold
from mimic_pl.losses.unit_consistent import UnitConsistentLoss

__all__ = ["AssignmentLoss", "IntraModalLoss", "LossTerm", "SymmetricLoss", "UnitConsistentLoss", "same_gold"]
