"""Linking through a retriever as the knowledge base grows: time, recall, memory and bytes."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from mimic_pl.ranking import EntityIndex, IndexDtype, PartialIndex, Ranker
from mimic_pl.ranking.text_columns import TYPE
from mimic_pl.records import Entity, Mention
from mimic_pl.remote_path import local_folder
from mimic_pl.retrieval import retriever_of
from mimic_pl.retrieval.catch_up import FOLDER
from mimic_pl.runs import load_run
from mimic_pl.units import States

_DTYPE: IndexDtype = "int8"
_AT_ONCE = 2048
_TOP = 10

_TYPES = 20
_ONE_TYPE = Restriction(entity_type="type 3")
"""A filter that allows one entity in twenty."""


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
            top = _exact_top(model, states, kb.index)
            seconds = (time.perf_counter() - start) / len(mentions)
            lines.append(fact(f"{count:,} entities: exact ranking, {len(mentions)} at once", seconds, "s", "mention"))
            tops = top, _exact_top(model, states, PartialIndex(kb.index, _ONE_TYPE.allowed(kb).order))
            torch.save((mentions, states), folder / "mentions.pt")
            for retriever in settings.retrievers.split(","):
                what = f"{count:,} entities, {retriever}"
                lines += _measured(retriever, kb, model, folder, tops, seconds, settings, what)
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
    tops: tuple[Tensor, Tensor],
    exact: float,
    settings: Settings,
    what: str,
) -> list[Line]:
    """Lines of a retriever.

    Args:
        retriever: Its name.
        kb: The knowledge base.
        model: The run's model.
        folder: Folder with the mentions and the knowledge base.
        tops: The exact first entities of each mention, of all and of one type, int64 ``[mentions, k]``.
        exact: Seconds that the first of these took for a mention.
        settings: Settings of the benchmark.
        what: What the lines are about.
    """
    start = time.perf_counter()
    retriever_of(retriever, settings.candidates).at(kb, model)
    built = time.perf_counter() - start
    files = [path for path in (local_folder(kb.folder) / FOLDER).rglob("*") if path.is_file()]
    arguments = str(folder), settings.run, retriever, settings.candidates
    peak: Peak = peak_memory(prepare_linking, "cpu", torch.get_num_threads(), *arguments)
    linked: Linked = peak.result
    lines = [
        fact(f"{what}: building", built, "s"),
        fact(f"{what}: bytes", sum(path.stat().st_size for path in files), "B"),
    ]
    for times, found, top, which in (
        (linked.times, linked.found, tops[0], ""),
        (linked.times_of_type, linked.found_of_type, tops[1], f", one of {_TYPES} types"),
    ):
        first = [own[0] == best[0] for own, best in zip(found, top.tolist(), strict=True)]
        ten = [len({*own} & {*best}) / len(best) for own, best in zip(found, top.tolist(), strict=True)]
        lines += [
            _compared(f"{what}{which}: p50", float(np.percentile(times, 50)), exact),
            _compared(f"{what}{which}: p95", float(np.percentile(times, 95)), exact),
            fact(f"{what}{which}: exact first found", 100 * float(np.mean(first)), "%"),
            fact(f"{what}{which}: exact first ten found", 100 * float(np.mean(ten)), "%"),
        ]
    return [
        *lines,
        fact(f"{what}: links that are certified", 100 * linked.certified, "%"),
        fact(f"{what}: candidates scored", linked.scored, "", "mention"),
        fact(f"{what}: resident memory, all included", peak.before + peak.increase, "B"),
    ]


def _compared(what: str, seconds: float, exact: float) -> Line:
    against = {"against": "exact ranking of many at once", "other": exact, "ratio": exact / seconds}
    return {**fact(what, seconds, "s", "mention"), **against}


def _exact_top(model: MIMIC, states: States, index: EntityIndex) -> Tensor:
    return Ranker(_TOP, unit_ranks="cheap")(model.matcher, states, index).top_entities


class Linked(NamedTuple):
    """Mentions that were linked one by one.

    Attributes:
        times: Seconds of each.
        found: Order numbers of each mention's first entities.
        times_of_type: Seconds of each, with entities of one type.
        found_of_type: First entities of that type.
        certified: Share of mentions whose first entity is proven to be the first of all.
        scored: Mean number of candidates.
    """

    times: list[float]
    found: list[list[int]]
    times_of_type: list[float]
    found_of_type: list[list[int]]
    certified: float
    scored: float


def prepare_linking(folder: str, run: str, retriever: str, k: int | None) -> Callable[[], Linked]:
    """Load a run; the returned function links mentions one by one."""
    model, _, _ = _of_run(run, 1, 0)
    mentions, states = torch.load(Path(folder) / "mentions.pt", weights_only=False)
    pairs = [(mention, rows(states, slice(row, row + 1))) for row, mention in enumerate(mentions)]

    def run_all() -> Linked:
        kb = KnowledgeBase(Path(folder) / "kb")
        search = CandidateSearch(model, kb, retriever_of(retriever, k).at(kb, model))

        def one_by_one(restriction: Restriction) -> tuple[list[float], list[list[int]]]:
            times, found = [], []
            for mention, own in [*pairs[:20], *pairs]:  # some to warm up
                start = time.perf_counter()
                (of_mention,) = search.ranked([mention], own, restriction, _TOP)
                times.append(time.perf_counter() - start)
                found.append([int(link.entity.id[1:]) for link in of_mention.links])
            return times[-len(mentions) :], found[-len(mentions) :]

        scored = [len(order) for order in search.candidates(mentions, states, Restriction(), _TOP)]
        measured = *one_by_one(Restriction()), *one_by_one(_ONE_TYPE)
        found = search.ranked(mentions, states, Restriction(), _TOP, certify=True)
        return Linked(*measured, float(np.mean([each.certified for each in found])), float(np.mean(scored)))

    return run_all


def _of_run(folder: str, mentions: int, seed: int) -> tuple[MIMIC, list[Mention], list[Entity]]:
    """A run's model, some of its test mentions, and some of its entities."""
    model, data = load_run(folder)
    data.setup("test")
    model.processor = data.ranked.processor  # fitted to the knowledge base
    generator = torch.Generator().manual_seed(seed)
    table, own = data.ranked.entities, data.ranked.mentions["test"]
    chosen = torch.randperm(len(own), generator=generator)[:mentions].tolist()
    return model.eval(), [own[row] for row in chosen], list(table)


def _build(folder: Path, sources: States, entities: Sequence[Entity], count: int, seed: int) -> KnowledgeBase:
    """Write a knowledge base of entities and of disturbed copies of them, in states and words, and compact it."""
    kb = KnowledgeBase.create(folder, {"model": "disturbed states of a run"}, _DTYPE)
    with kb.indexing() as indexing:
        for numbers, states in _disturbed(sources, len(entities), count, seed):
            rng = random.Random(int(numbers[0]))
            indexing.add([_renamed(entities[n % len(entities)], n, rng) for n in numbers.tolist()], states)
    return KnowledgeBase(folder).compact(keep_hours=0)


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
    """A copy of an entity with an id and a type of its own, and half of the words of its texts in another order."""

    def some(text: str) -> str:
        words = text.split()
        return " ".join(rng.sample(words, -(-len(words) // 2)))

    fields = {**{name: some(text) for name, text in entity.fields.items()}, TYPE: f"type {number % _TYPES}"}
    return replace(entity, id=f"E{number}", name=some(entity.name), fields=fields, images=(), arrays={})
