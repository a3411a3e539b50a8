"""Callbacks: results, starting points, calibration, TensorBoard panels, monitoring, interruption and exact resume."""

from mimic_pl.callbacks.calibrated_results import CalibratedResults
from mimic_pl.callbacks.hard_negatives import HardNegatives
from mimic_pl.callbacks.interruption import Interrupted, Interruption
from mimic_pl.callbacks.list_collector import ListCollector
from mimic_pl.callbacks.monitor import FailureMonitor
from mimic_pl.callbacks.panels import SamplePanels
from mimic_pl.callbacks.predictions import PredictionWriter
from mimic_pl.callbacks.resume import ExactResume
from mimic_pl.callbacks.tables import ResultTable
from mimic_pl.callbacks.weight_calibration import WeightCalibration
from mimic_pl.callbacks.whitening import Whitening

__all__ = [
    "CalibratedResults",
    "ExactResume",
    "FailureMonitor",
    "HardNegatives",
    "Interrupted",
    "Interruption",
    "ListCollector",
    "PredictionWriter",
    "ResultTable",
    "SamplePanels",
    "WeightCalibration",
    "Whitening",
]
