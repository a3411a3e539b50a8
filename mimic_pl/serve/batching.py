"""Micro-batching: mentions of requests that arrive meanwhile are linked together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from mimic_pl.links import Links

Record = Mapping[str, Any]


class BusyError(Exception):
    """More mentions are waiting than the queue holds, or a request waited too long."""


@dataclass(eq=False)
class _Job:
    records: Sequence[Record]
    top_k: int
    answer: asyncio.Future[list[list[Links]]]


class MicroBatcher:
    """Collects the mentions of concurrent requests, and links them in batches, one batch after another.

    No request waits for others to arrive: whatever has come in while a batch was linked is the next batch, so that
    batches are of single requests on an idle server, and large on a busy one. A request is never split.

    Args:
        link: Links records with a number of candidates; called in the executor, by one batch at a time.
        executor: Where the work is done.
        batch_size: Records from which on no further request joins a batch.
        capacity: Records that may wait.
        on_batch: Called with the number of records of each batch.
        on_waiting: Called with the number of records that wait or are being linked, whenever it changes.
    """

    def __init__(
        self,
        link: Callable[[Sequence[Record], int], Sequence[Links]],
        executor: Executor,
        batch_size: int,
        capacity: int,
        on_batch: Callable[[int], object] = lambda records: None,
        on_waiting: Callable[[int], object] = lambda records: None,
    ) -> None:
        self._link = link
        self._executor = executor
        self._batch_size = batch_size
        self._capacity = capacity
        self._on_batch = on_batch
        self._on_waiting = on_waiting
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self.waiting = 0
        """Records that wait or are being linked."""

    async def __call__(self, records: Sequence[Record], top_k: int, seconds: float) -> list[list[Links]]:
        """Link records.

        Args:
            records: The records.
            top_k: Candidates per mention.
            seconds: Time that the caller waits.

        Returns:
            For each record its links, several if it has ``spans``.

        Raises:
            BusyError: The queue is full, or the time is over.
        """
        if self.waiting + len(records) > self._capacity:
            raise BusyError
        job = _Job(records, top_k, asyncio.get_running_loop().create_future())
        self._count(len(records))
        job.answer.add_done_callback(lambda _: self._count(-len(records)))
        self._jobs.put_nowait(job)
        try:
            return await asyncio.wait_for(job.answer, seconds)
        except asyncio.TimeoutError as error:
            raise BusyError from error

    def _count(self, records: int) -> None:
        self.waiting += records
        self._on_waiting(self.waiting)

    async def run(self) -> None:
        """Link what comes in, until cancelled."""
        while True:
            jobs = [await self._jobs.get()]
            while sum(len(job.records) for job in jobs) < self._batch_size and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            jobs = [job for job in jobs if not job.answer.done()]  # given up
            if not jobs:
                continue
            await self._answer(jobs)

    async def _answer(self, jobs: Sequence[_Job]) -> None:
        """Link the records of some requests together; if that fails, each request alone, so that only one fails."""
        records = [record for job in jobs for record in job.records]
        self._on_batch(len(records))
        try:
            top_k = max(job.top_k for job in jobs)
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._link, records, top_k)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._answer([job])
            elif not jobs[0].answer.done():
                jobs[0].answer.set_exception(error)
            return
        by_record: dict[int, list[Links]] = defaultdict(list)
        for links in found:
            by_record[links.number].append(links)
        start = 0
        for job in jobs:
            numbers = range(start, start + len(job.records))
            start += len(job.records)
            if not job.answer.done():
                job.answer.set_result([by_record[number] for number in numbers])
