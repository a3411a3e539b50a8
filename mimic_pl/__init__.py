"""mimic-pl: multimodal entity linking with MIMIC (Luo et al., KDD 2023) on PyTorch Lightning."""

from mimic_pl.data import CrossDataModule, MELDataModule, RichpediaMEL, WikiDiverse, WikiMEL
from mimic_pl.features import FeatureDims, Features
from mimic_pl.model import MIMIC
from mimic_pl.processor import Processor
from mimic_pl.records import Entity, Mention

__version__ = "0.1.0"
__all__ = [
    "MIMIC",
    "CrossDataModule",
    "FeatureDims",
    "Features",
    "Entity",
    "MELDataModule",
    "Mention",
    "Processor",
    "RichpediaMEL",
    "WikiDiverse",
    "WikiMEL",
]
