"""mimic-pl: multimodal entity linking with MIMIC (Luo et al., KDD 2023) on PyTorch Lightning."""

from mimic_pl.data import CrossDataModule, MELDataModule, RichpediaMEL, WikiDiverse, WikiMEL
from mimic_pl.features import FeatureDims, Features
from mimic_pl.model import MIMIC

__version__ = "0.1.0"
__all__ = [
    "MIMIC",
    "CrossDataModule",
    "FeatureDims",
    "Features",
    "MELDataModule",
    "RichpediaMEL",
    "WikiDiverse",
    "WikiMEL",
]
