"""Bytes per entity."""

from __future__ import annotations

import torch

from mimic_pl.benchmark.problem import add, in_dtype, random_features, random_matcher
from mimic_pl.benchmark.ranking import DTYPES
from mimic_pl.benchmark.report import Row, sized
from mimic_pl.benchmark.settings import Settings
from mimic_pl.ranking import MemoryIndex


@torch.no_grad()
def sizes(settings: Settings) -> Row:
    """Compare an entity's bytes in the index with its features, which the published evaluation stores."""
    features = random_features(64, torch.Generator().manual_seed(settings.seed), "cpu")
    index = MemoryIndex()
    add(index, random_matcher(settings.seed, "cpu").entity(features))
    numbers = sum(field[0].numel() for field in features[:4])
    published = f"{numbers:,} float32 features"
    return {
        "title": "Bytes per entity at published sizes",
        "setting": {},
        "lines": [
            sized(f"index in {dtype}", in_dtype(index, dtype).bytes_per_entity, published, 4 * numbers, "entity")
            for dtype in DTYPES
        ],
        "bytes per entity": {dtype: in_dtype(index, dtype).bytes_per_entity for dtype in DTYPES},
    }
