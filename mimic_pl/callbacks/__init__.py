"""Callbacks turn what the evaluation loops yield into files, tables and TensorBoard panels."""

from mimic_pl.callbacks.calibration import WeightCalibration
from mimic_pl.callbacks.panels import SamplePanels
from mimic_pl.callbacks.predictions import PredictionWriter
from mimic_pl.callbacks.tables import ResultTable

__all__ = ["PredictionWriter", "ResultTable", "SamplePanels", "WeightCalibration"]
