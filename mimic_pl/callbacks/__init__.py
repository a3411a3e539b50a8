"""Callbacks: result files and tables, TensorBoard panels, monitoring, interruption and exact resume."""

from mimic_pl.callbacks.calibration import WeightCalibration
from mimic_pl.callbacks.hard_negatives import HardNegatives
from mimic_pl.callbacks.interruption import Interrupted, Interruption
from mimic_pl.callbacks.monitor import FailureMonitor
from mimic_pl.callbacks.panels import SamplePanels
from mimic_pl.callbacks.predictions import PredictionWriter
from mimic_pl.callbacks.resume import ExactResume
from mimic_pl.callbacks.tables import ResultTable

__all__ = [
    "ExactResume",
    "FailureMonitor",
    "HardNegatives",
    "Interrupted",
    "Interruption",
    "PredictionWriter",
    "ResultTable",
    "SamplePanels",
    "WeightCalibration",
]
