"""The index on disk: opening, ranking and memory as the knowledge base grows."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic_pl.benchmark.memory import Peak, peak_memory
from mimic_pl.benchmark.problem import MENTIONS_AT_ONCE, add, random_features, random_matcher, rows
from mimic_pl.benchmark.report import Line, Row, fact, sized
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, time_interleaved
from mimic_pl.ranking import IndexBuilder, IndexDtype, LanceIndex, MemoryIndex, Ranker
from mimic_pl.records import Entity
from mimic_pl.units import States

RICHPEDIA_ENTITIES = 160_933
GROWTH = (10_000, 100_000, 1_000_000)

_DESCRIPTION = {"model": "random weights"}
_DRAWN = 1024
_FEW_MENTIONS = 8


def memory(settings: Settings) -> Row:
    """Measure the peak memory of a test pass over an index on disk, in addition to the model."""
    entities = settings.memory_entities or settings.size(RICHPEDIA_ENTITIES, 1000)
    mentions = settings.size(MENTIONS_AT_ONCE, 24)
    dtype: IndexDtype = "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        size = _build(Path(folder), entities, dtype, settings.seed).bytes_per_entity * entities
        peak = _pass(folder, dtype, entities, mentions, True, settings)
    return {
        "title": "Peak memory of ranking over an index on disk",
        "setting": {"entities": entities, "mentions at once": mentions, "dtype": dtype},
        "lines": [
            sized("a pass, without the model", peak.increase, "the index on disk", size),
            fact("a pass", peak.result, "s"),
        ],
    }


def index(settings: Settings) -> Row:
    """Measure opening, ranking and memory as the knowledge base grows."""
    dtype: IndexDtype = "int8"
    lines: list[Line] = []
    checks: dict[str, Any] = {}
    passes: dict[int, Peak] = {}
    for entities in sorted(settings.growth or ((500, 1000) if settings.quick else GROWTH)):
        with tempfile.TemporaryDirectory() as folder:
            needed = entities * _bytes_per_entity(dtype)
            if needed * 1.1 > shutil.disk_usage(folder).free:
                checks[f"{entities} entities"] = f"skipped: {folder} has no space for {needed} bytes"
                continue
            start = time.perf_counter()
            _build(Path(folder), entities, dtype, settings.seed)
            lines.append(fact(f"{entities:,} entities: building", time.perf_counter() - start, "s"))
            expects = {**_DESCRIPTION, "dtype": dtype, "number of entities": entities}
            opening = time_interleaved({"open": Work(partial(LanceIndex, folder, expects))}, settings.num_rounds)[
                "open"
            ]
            peak = passes[entities] = _pass(folder, dtype, entities, _FEW_MENTIONS, False, settings)
            lines += [
                fact(f"{entities:,} entities: opening", opening.median, "s"),
                fact(f"{entities:,} entities: a pass of {_FEW_MENTIONS} mentions", peak.result, "s"),
                fact(f"{entities:,} entities: peak memory without the model", peak.increase, "B"),
            ]
    for fewer, more in zip(list(passes), list(passes)[1:], strict=False):
        for what, unit, a, b in (
            ("time per entity", "s", passes[fewer].result / fewer, passes[more].result / more),
            ("peak memory", "B", passes[fewer].increase, passes[more].increase),
        ):
            line = {"what": f"{what} at {more:,}", "value": b, "unit": unit, "against": f"at {fewer:,}", "other": a}
            lines.append({**line, "ratio": a / max(b, 1e-12)})
    return {
        "title": "Growth of an index on disk, every pair scored",
        "setting": {"dtype": dtype, "mentions": _FEW_MENTIONS},
        "lines": lines,
        "checks": checks,
    }


def _pass(folder: str, dtype: IndexDtype, entities: int, mentions: int, prune: bool, settings: Settings) -> Peak:
    """Seconds and peak memory of a pass, in a separate process."""
    arguments = folder, dtype, entities, mentions, prune, settings.seed, settings.device
    return peak_memory(prepare_pass, settings.device, torch.get_num_threads(), *arguments)


def prepare_pass(
    folder: str, dtype: IndexDtype, entities: int, mentions: int, prune: bool, seed: int, device: str
) -> Callable[[], float]:
    """Build a model and mentions; the returned function opens the index, ranks it and returns the seconds taken."""
    matcher = random_matcher(seed, device)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        states = matcher.mention(random_features(mentions, generator, device))
        # A small warm-up ranking, so that torch's one-time allocations count as the model's.
        small = MemoryIndex(device)
        add(small, matcher.entity(random_features(64, generator, device)))
    gold = torch.arange(mentions, device=device)[:, None] % min(64, entities)
    ranker = Ranker(prune=prune)
    ranker(matcher, rows(states, slice(0, 2)), small, gold[:2])
    del small

    def run() -> float:
        start = time.perf_counter()
        opened = LanceIndex(folder, {**_DESCRIPTION, "dtype": dtype, "number of entities": entities}, device)
        ranking = ranker(matcher, states, opened, gold)
        ranking.top_entities.cpu()
        return time.perf_counter() - start

    return run


def _build(folder: Path, entities: int, dtype: IndexDtype, seed: int) -> LanceIndex:
    """Write an index of entities whose states are combined from those of some random ones."""
    batches = partial(_batches, entities, seed)
    records = [Entity(f"Q{n}", f"entity {n}") for n in range(entities)]
    built = IndexBuilder(dtype, "disk").on_disk(folder, records, batches, torch.device("cpu"), _DESCRIPTION)
    assert isinstance(built, LanceIndex)
    return built


@torch.no_grad()
def _batches(entities: int, seed: int, first: int) -> Iterable[tuple[Tensor, States]]:
    """Batches of states from ``first`` on.

    Each tensor of an entity's state comes from a different random entity, which is faster than sampling millions of
    values and keeps entities distinct.
    """
    matcher = random_matcher(seed, "cpu")
    drawn = matcher.entity(random_features(min(_DRAWN, entities), torch.Generator().manual_seed(seed), "cpu"))
    return _mixed(drawn, entities, seed, first)


def _mixed(drawn: States, entities: int, seed: int, first: int) -> Iterator[tuple[Tensor, States]]:
    count = len(next(iter(next(iter(drawn.values())).values())))
    for number, start in enumerate(range(0, entities, count)):
        positions = torch.arange(start, min(start + count, entities))
        if start + count <= first:
            continue
        generator = torch.Generator().manual_seed(seed + number)
        yield (
            positions,
            {
                unit: {
                    name: tensor[torch.randperm(count, generator=generator)[: len(positions)]]
                    for name, tensor in state.items()
                }
                for unit, state in drawn.items()
            },
        )


@torch.no_grad()
def _bytes_per_entity(dtype: IndexDtype) -> int:
    memory = MemoryIndex(dtype=dtype)
    add(memory, random_matcher(0, "cpu").entity(random_features(1, torch.Generator(), "cpu")))
    return memory.bytes_per_entity
