"""Cost of each part of MIMIC in parameters, FLOPs, time and bytes, compared with plain concatenation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mimic_pl.benchmark.encoders import build_encoder, random_inputs
from mimic_pl.benchmark.flops import flops, matcher_flops, parameters
from mimic_pl.benchmark.problem import DIMS, add, random_features
from mimic_pl.benchmark.report import Line, Row, fact, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, time_interleaved
from mimic_pl.ranking import MemoryIndex, Ranker
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine, Matcher, UnitFactory, published_units

MIMIC = "MIMIC"

_COUNTED = 4
"""Number of mentions and entities for counting operations."""


def variants() -> dict[str, dict[str, UnitFactory]]:
    """Units of MIMIC, of its ablations and of plain concatenation, by name in the table."""
    units = published_units()
    result: dict[str, dict[str, UnitFactory]] = {MIMIC: units}
    for removed in units:
        result[f"without {removed}"] = {name: unit for name, unit in units.items() if name != removed}
    for alone in units:
        result[f"{alone} alone"] = {alone: units[alone]}
    padding: dict[str, UnitFactory] = {"text": partial(TGLU, mask_padding=True), "vision": VDLU, "cross_modal": CMFU}
    result["padding masked"] = padding
    result["gates of vision fixed at 1"] = {**units, "vision": partial(VDLU, gated=False)}
    result["concatenation in vision's place"] = {**units, "vision": GlobalCosine}
    result["concatenation alone"] = {"global": GlobalCosine}
    return result


@torch.no_grad()
def overhead(settings: Settings) -> Row:
    """Measure all variants at published sizes on the same random features, scoring every pair."""
    mentions = settings.mentions or settings.size(64, 8)
    entities = settings.entities or settings.size(2048, 100)
    generator = torch.Generator().manual_seed(settings.seed)
    sides = [random_features(count, generator, settings.device) for count in (mentions, entities)]
    few = [random_features(_COUNTED, generator, "cpu") for _ in range(2)]
    gold = torch.randint(entities, (mentions, 1), generator=generator).to(settings.device)
    table: list[dict[str, Any]] = []
    works: dict[str, Work] = {}
    ranker = Ranker(prune=False)  # the effect of bounds on random features is not representative
    for name, units in variants().items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            matcher = Matcher(DIMS, units).eval()
        counted = matcher_flops(matcher, *few)
        matcher.to(settings.device)
        index = MemoryIndex(settings.device)
        add(index, matcher.entity(sides[1]))
        works[name] = Work(partial(ranker, matcher, matcher.mention(sides[0]), index, gold), mentions)
        table.append(
            {
                "model": name,
                "parameters": parameters(matcher),
                "FLOPs / mention": counted.mention,
                "FLOPs / entity": counted.entity,
                "FLOPs / pair": counted.pair,
                "bytes / entity": index.bytes_per_entity,
            }
        )
    times = time_interleaved(works, settings.num_rounds, settings.device)
    for line in table:
        line["ms / mention"] = 1000 * times[line["model"]].median
        line["speedup"] = times[MIMIC].median / times[line["model"]].median
    return {
        "title": "Overhead of each part at published sizes, without the encoder",
        "setting": {"mentions": mentions, "entities": entities, "dtype": "float32", "rounds": settings.num_rounds},
        "table": table,
        "lines": [
            *(timed(name, times[name], MIMIC, times[MIMIC], "mention") for name in works if name != MIMIC),
            *_encoder(settings),
        ],
    }


def _encoder(settings: Settings) -> list[Line]:
    """Cost of the encoder, which all variants share."""
    encoder = build_encoder(settings.encoder, settings.seed).eval()
    side = random_inputs(encoder, 1, torch.Generator().manual_seed(settings.seed), "cpu")
    name = f"the {settings.encoder} encoder"
    return [
        fact(f"{name}: parameters", parameters(encoder), ""),
        fact(f"{name}: FLOPs", flops(lambda: encoder(**side)), "", "mention or entity"),
    ]
