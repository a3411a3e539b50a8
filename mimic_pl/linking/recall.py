"""How many of the exact first entities a retriever finds, by the number of candidates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from mimic_pl.errors import ConfigError, DataError
from mimic_pl.linking.candidates import Query
from mimic_pl.linking.linker import Linker
from mimic_pl.linking.mention_records import Restriction, mentions_of
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.ranking import Ranker

DEFAULT_KS = (10, 20, 50, 100, 200, 500, 1000, 2000)
"""Numbers of candidates to measure."""

_TOP = 10


class Recall(NamedTuple):
    """What a retriever finds with some number of candidates.

    Attributes:
        k: Candidates per channel.
        first: Fraction of mentions whose first entity in the exact ranking is among the candidates.
        ten: Mean fraction of the first ten that are.
        candidates: Mean number of candidates of a mention: entities that are scored.
        seconds: Mean seconds to find those of a mention, after it was encoded.
    """

    k: int
    first: float
    ten: float
    candidates: float
    seconds: float


def measure_recall(
    linker: Linker,
    records: Iterable[Any],
    ks: Sequence[int] = DEFAULT_KS,
    filter: str | None = None,
    batch_size: int = 64,
    show_progress_bar: bool = False,
) -> list[Recall]:
    """Compare a linker's retriever with the exact ranking on mentions; golds are not read.

    Args:
        linker: A linker with a knowledge base and a retriever.
        records: Mentions, as for :meth:`Linker.link`. Those that cannot be linked are left out.
        ks: Numbers of candidates; those above the number of entities are left out.
        filter: Condition that entities must meet.
        batch_size: Mentions that are encoded and ranked at once.
        show_progress_bar: Show a progress bar.

    Raises:
        ConfigError: The linker has no retriever, or ks are wrong.
        DataError: There are no mentions.
    """
    search = linker._candidates
    retriever = search.retriever
    if retriever is None:
        raise ConfigError("Everything is ranked without a retriever. Name one: linker.with_retriever('lance').")
    ks = sorted({*ks})
    for k in ks:
        require_ranges({"ks": COUNT}, {"ks": k}, "")
    ks = [k for k in ks if k < len(search.knowledge_base)] or ks[:1]
    first, ten, counts, seconds = (dict.fromkeys(ks, 0.0) for _ in range(4))
    mentions = 0
    queries = iter(tqdm(_queries(records, filter), "Measuring", unit=" mentions", disable=not show_progress_bar))
    while batch := list(islice(queries, batch_size)):
        for restriction, of_same in _by_restriction(batch):
            part = search.part(restriction)
            if part is None:
                continue
            encoded = search.queries(of_same)
            top = Ranker(_TOP, unit_ranks="cheap")(linker.model.matcher, encoded.states, part).top_entities.cpu()
            mentions += len(of_same)
            for k in ks:
                start = time.perf_counter()
                found = retriever.retrieve(encoded, k, search.allowed(restriction))
                seconds[k] += time.perf_counter() - start
                for candidates, best in zip(found, top, strict=True):
                    there = torch.isin(best, candidates)
                    first[k] += float(there[0])
                    ten[k] += float(there.double().mean())
                    counts[k] += len(candidates)
    if not mentions:
        raise DataError("There are no mentions to measure the recall of.")
    return [Recall(k, *(sums[k] / mentions for sums in (first, ten, counts, seconds))) for k in ks]


def smallest_k(measured: Sequence[Recall], wanted: float) -> int | None:
    """The smallest measured k from which on the first entity is found as often as wanted; None if none is enough."""
    enough = None
    for recall in reversed(measured):
        if recall.first < wanted:
            break
        enough = recall.k
    return enough


def _queries(records: Iterable[Any], filter: str | None) -> Iterable[Query]:
    for record in records:
        try:
            mentions = mentions_of(record)
        except DataError:
            continue
        for mention in mentions:
            yield Query(mention, Restriction.of(mention, filter))


def _by_restriction(queries: Sequence[Query]) -> Iterable[tuple[Restriction, list[Query]]]:
    groups: dict[Restriction, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.restriction, []).append(query)
    return groups.items()
