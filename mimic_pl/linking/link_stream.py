"""A stream of links: batches of mentions, errors of single records, counts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mimic_pl.batch import Inputs
from mimic_pl.errors import ConfigError, DataError, MimicError, NonFiniteScoreError
from mimic_pl.linking.candidates import CandidateSearch, Found, Query
from mimic_pl.linking.mention_records import Restriction, mentions_of
from mimic_pl.links import Links
from mimic_pl.processor.images import ImageReport

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

    def add_images(self, report: ImageReport) -> None:
        """Count failed images, and forget the names of all but the first, since a stream may have millions."""
        for name, kind in report.failures.items():
            self.images[kind] += 1
            self.image_examples.setdefault(kind, name)
        report.failures.clear()


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

    Attributes:
        counts: What became of the mentions so far.
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
        self._links = self._all(iter(records), batch_size)

    def __next__(self) -> Links:
        """The links of the next mention."""
        return next(self._links)

    def _all(self, records: Iterator[tuple[int, Any]], batch_size: int) -> Iterator[Links]:
        items = self._items(records)
        while batch := list(islice(items, batch_size)):
            self._link([item for item in batch if item.query is not None])
            self.counts.add_images(self._search.model.processor.report)
            for item in batch:
                assert item.links is not None, "every item gets links or an error"
                self.counts.add(item.links)
                yield item.links
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
        """Link a batch; if that fails, its halves, so that only the records at fault fail."""
        if not items:
            return
        queries = [item.query for item in items if item.query is not None]
        try:
            inputs: Inputs = self._search.inputs(queries)
            found = self._search(queries, inputs, self._depth, self._certify)
        except _OF_A_RECORD as error:
            if len(items) == 1:
                items[0].fail(error)
            else:
                self._link(items[: len(items) // 2])
                self._link(items[len(items) // 2 :])
            return
        for item, of_mention in zip(items, found, strict=True):
            self._complete(item, of_mention)

    def _complete(self, item: _Item, found: Found) -> None:
        assert item.query is not None
        try:
            links = self._finish(Links(item.query.mention, found.links, number=item.number, certified=found.certified))
        except _OF_A_RECORD as error:
            item.fail(error)
            return
        item.links = replace(links, candidates=links.candidates[: self._top_k])

    def _log_images(self) -> None:
        """Log kinds of failed images that the linker has not met before, and count all."""
        counts = self.counts
        new = sorted(kind for kind in counts.images if not self._unusable_images[kind])
        self._unusable_images.update(counts.images)
        if new:
            kinds = "; ".join(
                f"{counts.images[kind]} {kind}, for example {counts.image_examples[kind]}" for kind in new
            )
            _log.warning(
                f"Images of mentions that could not be used: {kinds}. Such a mention is linked as one without an "
                "image; with the image policy 'error' it fails. Further ones are counted in linker.unusable_images."
            )
