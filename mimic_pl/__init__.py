"""Multimodal entity linking with MIMIC (Luo et al., KDD 2023) on PyTorch Lightning.

A mention is a word in a sentence with an image; mimic-pl ranks a whole knowledge base, whose entities have text and
images, too, for it. Start with these names:

- ``Linker.from_pretrained(folder)``: links your mentions to your entities.
- ``load_run(folder)``: the model and the data of a training run. ``MIMIC.load_from_checkpoint(path)``: a model alone.
- ``model.encode_mentions(records)``, ``model.encode_entities(records)``, ``model.score(mentions, entities)``: without a
  Trainer.
- ``model.build_index(entities)`` and ``Ranker()``: exact ranks and top lists over many entities.
- ``MIMIC``, ``MELDataModule``, ``Unit``, ``Encoder``: to subclass in a project of your own; ``MIMIC``'s docstring lists
  the hooks, ``mimic_pl.units.check_unit`` tries a unit.
- ``RichpediaMEL``, ``WikiMEL``, ``WikiDiverse``, ``CrossDataModule``: the data, for ``Trainer().fit(model, data)``.

    >>> from mimic_pl import load_run
    >>> model, data = load_run("lightning_logs/version_0")  # doctest: +SKIP
    >>> mentions = model.encode_mentions([{"mention": "Jordan", "sentence": "Jordan scored 30."}])  # doctest: +SKIP
    >>> model.score(mentions, model.encode_entities(data.ranked.entities[:9]))["overall"]  # doctest: +SKIP

On the command line: ``mimic-pl fit --config cli_configs/demo.yaml``, ``mimic-pl test``; ``mimic-pl --help`` lists the
rest.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimic_pl.callbacks import FailureMonitor, HardNegatives, PredictionWriter, ResultTable, WeightCalibration
    from mimic_pl.data import CrossDataModule, DemoMEL, MELDataModule, RichpediaMEL, WikiDiverse, WikiMEL
    from mimic_pl.encoders import CLIPEncoder, Encoder, TextVisionEncoder
    from mimic_pl.features import FeatureDims, Features
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.linking import Linker
    from mimic_pl.links import Link, Links
    from mimic_pl.loss_inputs import LossInputs
    from mimic_pl.losses import AssignmentLoss, IntraModalLoss, Loss, SymmetricLoss, UnitConsistentLoss
    from mimic_pl.model import MIMIC
    from mimic_pl.processor import BM25Lexicon, Processor, RecordArrays, RecordFeatures
    from mimic_pl.ranking import EntityIndex, IndexBuilder, MemoryIndex, Ranker, Ranking
    from mimic_pl.records import Entity, Mention
    from mimic_pl.runs import load_run
    from mimic_pl.units import (
        CMFU,
        TGLU,
        VDLU,
        CompactVector,
        GlobalCosine,
        Lexical,
        Matcher,
        Unit,
        WeightedMatcher,
        check_unit,
    )

__version__ = "0.1.0"

_MODULES = {
    "callbacks": ("FailureMonitor", "HardNegatives", "PredictionWriter", "ResultTable", "WeightCalibration"),
    "data": ("CrossDataModule", "DemoMEL", "MELDataModule", "RichpediaMEL", "WikiDiverse", "WikiMEL"),
    "encoders": ("CLIPEncoder", "Encoder", "TextVisionEncoder"),
    "features": ("FeatureDims", "Features"),
    "knowledge_base": ("KnowledgeBase",),
    "linking": ("Linker",),
    "links": ("Link", "Links"),
    "loss_inputs": ("LossInputs",),
    "losses": ("AssignmentLoss", "IntraModalLoss", "Loss", "SymmetricLoss", "UnitConsistentLoss"),
    "model": ("MIMIC",),
    "processor": ("BM25Lexicon", "Processor", "RecordArrays", "RecordFeatures"),
    "ranking": ("EntityIndex", "IndexBuilder", "MemoryIndex", "Ranker", "Ranking"),
    "records": ("Entity", "Mention"),
    "runs": ("load_run",),
    "units": (
        *("CMFU", "TGLU", "VDLU", "CompactVector", "GlobalCosine", "Lexical", "Matcher", "Unit"),
        *("WeightedMatcher", "check_unit"),
    ),
}
"""Where each name comes from: its module is loaded when the name is first asked for (PEP 562)."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> object:
        if name in _MODULE_OF:
            found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            found = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
