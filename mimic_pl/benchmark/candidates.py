"""Linking through a retriever as the knowledge base grows: time, recall, memory and bytes."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic_pl.benchmark.index import GROWTH
from mimic_pl.benchmark.memory import Peak, peak_memory
from mimic_pl.benchmark.problem import NOISE, rows
from mimic_pl.benchmark.report import Line, Row, fact
from mimic_pl.benchmark.settings import Settings
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.candidates import CandidateSearch
from mimic_pl.linking.mention_records import Restriction
from mimic_pl.model import MIMIC
from mimic_pl.ranking import IndexDtype, Ranker
from mimic_pl.records import Entity, Mention
from mimic_pl.remote_path import local_folder
from mimic_pl.retrieval import retriever_of
from mimic_pl.retrieval.catch_up import FOLDER
from mimic_pl.runs import load_run
from mimic_pl.units import States

_DTYPE: IndexDtype = "int8"
_AT_ONCE = 2048
_TOP = 10
_SOURCES = 4096
"""Entities of the run that others are made from."""


def candidates(settings: Settings) -> Row:
    """Measure linking through retrievers in knowledge bases made from a run's own entities by disturbance."""
    assert settings.run is not None
    model, mentions, entities = _of_run(settings.run, settings.mentions or settings.size(200, 12), settings.seed)
    with torch.no_grad():
        states = model.encode_mentions(mentions)
        sources = model.encode_entities(entities)
    lines: list[Line] = []
    for count in sorted(settings.growth or ((500, 1000) if settings.quick else GROWTH)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.perf_counter()
            kb = _build(folder / "kb", sources, entities, count, settings.seed)
            lines.append(fact(f"{count:,} entities: writing the knowledge base", time.perf_counter() - start, "s"))
            lines.append(fact(f"{count:,} entities: knowledge base", kb.bytes_on_disk, "B"))
            start = time.perf_counter()
            top = Ranker(_TOP, unit_ranks="cheap")(model.matcher, states, kb.index).top_entities
            seconds = (time.perf_counter() - start) / len(mentions)
            lines.append(fact(f"{count:,} entities: exact ranking, {len(mentions)} at once", seconds, "s", "mention"))
            torch.save((mentions, states), folder / "mentions.pt")
            for retriever in settings.retrievers.split(","):
                what = f"{count:,} entities, {retriever}"
                lines += _measured(retriever, kb, model, folder, top, seconds, settings, what)
                shutil.rmtree(local_folder(kb.folder) / FOLDER)
    return {
        "title": "Linking through a retriever, one mention at a time after encoding, scores exact",
        "setting": {"mentions": len(mentions), "dtype": _DTYPE, "noise": NOISE, "candidates": settings.candidates},
        "lines": lines,
    }


def _measured(
    retriever: str,
    kb: KnowledgeBase,
    model: MIMIC,
    folder: Path,
    top: Tensor,
    exact: float,
    settings: Settings,
    what: str,
) -> list[Line]:
    """Lines of a retriever, given the exact first entities and the seconds that they took for a mention."""
    start = time.perf_counter()
    retriever_of(retriever, settings.candidates).at(kb, model)
    built = time.perf_counter() - start
    files = [path for path in (local_folder(kb.folder) / FOLDER).rglob("*") if path.is_file()]
    arguments = str(folder), settings.run, retriever, settings.candidates
    peak: Peak = peak_memory(prepare_linking, "cpu", torch.get_num_threads(), *arguments)
    times, found, scored = peak.result
    first = [own[0] == best[0] for own, best in zip(found, top.tolist(), strict=True)]
    ten = [len({*own} & {*best}) / len(best) for own, best in zip(found, top.tolist(), strict=True)]
    return [
        fact(f"{what}: building", built, "s"),
        fact(f"{what}: bytes", sum(path.stat().st_size for path in files), "B"),
        _compared(f"{what}: p50", float(np.percentile(times, 50)), exact),
        _compared(f"{what}: p95", float(np.percentile(times, 95)), exact),
        fact(f"{what}: exact first found", 100 * float(np.mean(first)), "%"),
        fact(f"{what}: exact first ten found", 100 * float(np.mean(ten)), "%"),
        fact(f"{what}: candidates scored", scored, "", "mention"),
        fact(f"{what}: resident memory, all included", peak.before + peak.increase, "B"),
    ]


def _compared(what: str, seconds: float, exact: float) -> Line:
    against = {"against": "exact ranking of many at once", "other": exact, "ratio": exact / seconds}
    return {**fact(what, seconds, "s", "mention"), **against}


def prepare_linking(
    folder: str, run: str, retriever: str, k: int | None
) -> Callable[[], tuple[list[float], list[list[int]], float]]:
    """Load a run; the returned function links mentions one by one.

    It returns the seconds and the first entities of each, and the mean number of candidates.
    """
    model, _, _ = _of_run(run, 1, 0)
    mentions, states = torch.load(Path(folder) / "mentions.pt", weights_only=False)

    def run_all() -> tuple[list[float], list[list[int]], float]:
        kb = KnowledgeBase(Path(folder) / "kb")
        search = CandidateSearch(model, kb, retriever_of(retriever, k).at(kb, model))
        assert search.retriever is not None, "it was just opened"
        times, found, scored = [], [], 0
        for warm_up in (True, False):
            for row, mention in enumerate(mentions[: 20 if warm_up else None]):
                own = rows(states, slice(row, row + 1))
                start = time.perf_counter()
                ((links, _),) = search.ranked([mention], own, Restriction(), _TOP)
                if not warm_up:
                    times.append(time.perf_counter() - start)
                    found.append([int(link.entity.id[1:]) for link in links])
                    scored += len(search.candidates([mention], own, Restriction(), _TOP)[0])
        return times, found, scored / len(mentions)

    return run_all


def _of_run(folder: str, mentions: int, seed: int) -> tuple[MIMIC, list[Mention], list[Entity]]:
    """A run's model, some of its test mentions, and some of its entities."""
    model, data = load_run(folder)
    data.setup("test")
    model.processor = data.ranked.processor  # fitted to the knowledge base
    generator = torch.Generator().manual_seed(seed)
    table, own = data.ranked.entities, data.ranked.mentions["test"]
    chosen = torch.randperm(len(own), generator=generator)[:mentions].tolist()
    return model.eval(), [own[row] for row in chosen], [table[row] for row in range(min(_SOURCES, len(table)))]


def _build(folder: Path, sources: States, entities: Sequence[Entity], count: int, seed: int) -> KnowledgeBase:
    """Write a knowledge base of entities and of disturbed copies of them, in states and words."""
    kb = KnowledgeBase.create(folder, {"model": "disturbed states of a run"}, _DTYPE)
    with kb.indexing() as indexing:
        for numbers, states in _disturbed(sources, len(entities), count, seed):
            rng = random.Random(int(numbers[0]))
            indexing.add([_renamed(entities[n % len(entities)], n, rng) for n in numbers.tolist()], states)
    return KnowledgeBase(folder)


def _disturbed(sources: States, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, States]]:
    """Order numbers and states: the sources first, then noisy copies of them."""
    scales = {
        (unit, name): NOISE * tensor.float().std() if tensor.is_floating_point() else None
        for unit, state in sources.items()
        for name, tensor in state.items()
    }
    for start in range(0, count, _AT_ONCE):
        numbers = torch.arange(start, min(start + _AT_ONCE, count))
        generator = torch.Generator().manual_seed(seed + start)
        copies = (numbers >= size).float()

        def noisy(
            unit: str, name: str, numbers: Tensor = numbers, copies: Tensor = copies, generator: Any = generator
        ) -> Tensor:
            tensor, scale = sources[unit][name][numbers % size], scales[unit, name]
            if scale is None:
                return tensor
            noise = scale * torch.randn(tensor.shape, generator=generator)
            return tensor + noise * copies.view(-1, *[1] * (tensor.dim() - 1))

        yield numbers, {unit: {name: noisy(unit, name) for name in state} for unit, state in sources.items()}


def _renamed(entity: Entity, number: int, rng: random.Random) -> Entity:
    """A copy of an entity with an id of its own, and with half of the words of its texts in another order."""

    def some(text: str) -> str:
        words = text.split()
        return " ".join(rng.sample(words, -(-len(words) // 2)))

    fields = {name: some(text) for name, text in entity.fields.items()}
    return replace(entity, id=f"E{number}", name=some(entity.name), fields=fields, images=(), arrays={})
