"""A stream of links: batches of mentions, errors of single records, counts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from mimic_pl.errors import ConfigError, DataError, MimicError, NonFiniteScoreError
from mimic_pl.linking.candidates import CandidateSearch, Found, Query
from mimic_pl.linking.mention_records import Restriction, mentions_of
from mimic_pl.links import Links
from mimic_pl.ranking.stored_states import joined
from mimic_pl.units import States

_log = logging.getLogger(__name__)

_OF_A_RECORD = (DataError, ConfigError, NonFiniteScoreError)
"""Errors that a single record can cause."""

Finish = Callable[[Links], Links]
"""Completes the candidates of a mention: reranker, probabilities."""


@dataclass
class LinkCounts:
    """What became of the mentions of a stream so far.

    Attributes:
        linked: Mentions with a candidate that is more probable than NIL.
        nil: Mentions without.
        failed: Records and mentions with an error.
        certified: Mentions whose first candidate is proven to be the first of all entities, if that was asked for.
        images: Images that could not be used, by kind (``missing``, ``unreadable``, ...).
        image_examples: The first of each kind.
    """

    linked: int = 0
    nil: int = 0
    failed: int = 0
    certified: int = 0
    images: Counter[str] = field(default_factory=Counter)
    image_examples: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All mentions."""
        return self.linked + self.nil + self.failed

    def add(self, links: Links) -> None:
        """Count a mention."""
        self.certified += bool(links.certified)
        if links.error is not None:
            self.failed += 1
        elif links.is_nil:
            self.nil += 1
        else:
            self.linked += 1

    def add_images(self, failures: Mapping[str, str]) -> None:
        """Count failed images, given as kinds by name."""
        for name, kind in failures.items():
            self.images[kind] += 1
            self.image_examples.setdefault(kind, name)


@dataclass
class _Item:
    """A mention on its way, with the number of its record; or an error."""

    number: int
    query: Query | None = None
    links: Links | None = None

    def fail(self, error: MimicError) -> None:
        """Set the error."""
        problem = error if isinstance(error, DataError) else DataError(str(error))
        if problem is not error:
            problem.__cause__ = error
        self.links = Links(None if self.query is None else self.query.mention, error=problem, number=self.number)


class LinkStream(Iterator[Links]):
    """The links of mentions, in their order, computed batch by batch while it is iterated over.

    Several processes link a batch each at a time, which the first one reads, and get the links of all of them: all have
    to iterate over their streams. An error that ends one of them ends all.

    Attributes:
        counts: What became of the mentions so far, on all processes.
    """

    def __init__(
        self,
        search: CandidateSearch,
        records: Iterable[tuple[int, Any]],
        top_k: int | None,
        depth: int | None,
        filter: str | None,
        batch_size: int,
        image_folder: Path | None,
        finish: Finish,
        unusable_images: Counter[str],
        certify: bool,
    ) -> None:
        self.counts = LinkCounts()
        self._search = search
        self._top_k, self._depth = top_k, depth
        self._filter = filter
        self._image_folder = image_folder
        self._finish = finish
        self._certify = certify
        self._unusable_images = unusable_images
        self._batches = self._all(iter(records), batch_size)
        self._links = chain.from_iterable(self._batches)

    def __next__(self) -> Links:
        """The links of the next mention."""
        return next(self._links)

    def batches(self) -> Iterator[list[Links]]:
        """The links that are left, as they are computed: of a batch of each process."""
        return self._batches

    def _all(self, records: Iterator[tuple[int, Any]], batch_size: int) -> Iterator[list[Links]]:
        processes, report = self._search.processes, self._search.model.processor.report
        items = self._items(records)
        # Each process has a batch that one process alone would have, so that it is encoded to the same bits.
        while everyone := processes.run_on_first(lambda: list(islice(items, batch_size * processes.world_size))):
            own = everyone[processes.rank * batch_size :][:batch_size]
            self._link([item for item in own if item.query is not None])
            batch = []
            for found, failures in processes.gather_objects((list(map(_links_of, own)), dict(report.failures))):
                self.counts.add_images(failures)
                batch += found
            report.failures.clear()  # a stream may have millions
            for links in batch:
                self.counts.add(links)
            yield batch
        self._log_images()

    def _items(self, records: Iterator[tuple[int, Any]]) -> Iterator[_Item]:
        for number, record in records:
            try:
                mentions = mentions_of(record, self._image_folder)
            except DataError as error:
                item = _Item(number)
                item.fail(error)
                yield item
                continue
            for mention in mentions:
                try:
                    yield _Item(number, Query(mention, Restriction.of(mention, self._filter)))
                except DataError as error:
                    yield _Item(number, None, Links(mention, error=error, number=number))

    def _link(self, items: Sequence[_Item]) -> None:
        """Link this process's batch; collective."""
        processes = self._search.processes
        parts = processes.run_together(lambda: list(self._encoded(items)))
        encoded = [item for part, _ in parts for item in part]
        states = joined([states for _, states in parts]) if parts else {}
        sizes = [size for (size,) in processes.gather_integers(len(encoded), device=torch.device("cpu"))]
        self._rank(encoded, states, sum(sizes[: processes.rank]), 0, sum(sizes))

    def _encoded(self, items: Sequence[_Item]) -> Iterator[tuple[Sequence[_Item], States]]:
        """Encode mentions; if that fails, their halves, so that only the records at fault fail."""
        if not items:
            return
        try:
            yield items, self._search.encoded(_queries(items))
        except _OF_A_RECORD as error:
            if len(items) == 1:
                items[0].fail(error)
                return
            yield from self._encoded(items[: len(items) // 2])
            yield from self._encoded(items[len(items) // 2 :])

    def _rank(self, items: Sequence[_Item], states: States, first: int, start: int, stop: int) -> None:
        """Rank some of the mentions of all processes; if that fails, their halves; collective.

        Args:
            items: Encoded mentions of this process.
            states: Their states.
            first: Number of the first of them among those of all processes.
            start: Number of the first mention to be ranked.
            stop: Number after the last one.
        """
        if start == stop:
            return
        rows = slice(max(start - first, 0), max(stop - first, 0))
        own = items[rows]
        try:
            found = self._search(_queries(own), _sliced(states, rows), self._depth, self._certify)
        except _OF_A_RECORD as error:  # which all processes have
            if stop - start == 1:
                for item in own:
                    item.fail(error)
                return
            middle = (start + stop) // 2
            self._rank(items, states, first, start, middle)
            self._rank(items, states, first, middle, stop)
            return
        self._search.processes.run_together(lambda: self._complete(own, found))

    def _complete(self, items: Sequence[_Item], found: Sequence[Found]) -> None:
        for item, query, (links, certified) in zip(items, _queries(items), found, strict=True):
            try:
                finished = self._finish(Links(query.mention, links, number=item.number, certified=certified))
            except _OF_A_RECORD as error:
                item.fail(error)
                continue
            item.links = replace(finished, candidates=finished.candidates[: self._top_k])

    def _log_images(self) -> None:
        """Log kinds of failed images that the linker has not met before, and count all."""
        counts = self.counts
        new = sorted(kind for kind in counts.images if not self._unusable_images[kind])
        self._unusable_images.update(counts.images)
        if new and self._search.processes.rank == 0:
            kinds = "; ".join(
                f"{counts.images[kind]} {kind}, for example {counts.image_examples[kind]}" for kind in new
            )
            _log.warning(
                f"Images of mentions that could not be used: {kinds}. Such a mention is linked as one without an "
                "image; with the image policy 'error' it fails. Further ones are counted in linker.unusable_images."
            )


def _queries(items: Sequence[_Item]) -> list[Query]:
    return [item.query for item in items if item.query is not None]


def _sliced(states: States, rows: slice) -> States:
    return {unit: {name: tensor[rows] for name, tensor in state.items()} for unit, state in states.items()}


def _links_of(item: _Item) -> Links:
    assert item.links is not None, "every item gets links or an error"
    return item.links
