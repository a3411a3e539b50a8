"""Requests are linked together, and fail alone."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi_offline")

from mimic_pl.links import Links
from mimic_pl.serve.batching import MicroBatcher


def test_a_request_that_cannot_be_linked_fails_alone():
    batches = []

    def link(records, top_k):
        batches.append(len(records))
        if any("bad" in record for record in records):
            raise TypeError("no such text")
        return [Links(None, number=number) for number, _ in enumerate(records)]

    async def main():
        waiting = []
        batcher = MicroBatcher(link, ThreadPoolExecutor(1), 64, 1000, on_waiting=waiting.append)
        running = asyncio.create_task(batcher.run())
        requests = [[{"good": ""}] * 3, [{"bad": ""}], [{"good": ""}, {"bad": ""}], [{"good": ""}] * 2]
        answers = await asyncio.gather(*(batcher(each, 5, 60.0) for each in requests), return_exceptions=True)
        running.cancel()
        return answers, waiting

    answers, waiting = asyncio.run(main())
    assert [len(each) if isinstance(each, list) else type(each) for each in answers] == [3, TypeError, TypeError, 2]
    assert batches == [8, 3, 1, 2, 2]
    assert max(waiting) == 8 and waiting[-1] == 0
