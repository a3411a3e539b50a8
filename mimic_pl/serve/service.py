"""What the routes of the server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fastapi import HTTPException

from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking import Linker
from mimic_pl.processor.images import ImageError, opened_image
from mimic_pl.serve.batching import MicroBatcher
from mimic_pl.serve.limits import Limits
from mimic_pl.serve.messages import LinkResponse, MentionRequest
from mimic_pl.serve.served_linker import ServedLinker
from mimic_pl.serve.server_metrics import ServerMetrics

T = TypeVar("T")


class Service:
    """The linker, its thread, the batcher, limits and metrics.

    Args:
        linker: The linker, with a knowledge base.
        limits: What is accepted.
    """

    def __init__(self, linker: Linker, limits: Limits) -> None:
        self.linker = ServedLinker(linker)
        self.limits = limits
        self.metrics = ServerMetrics()
        # One thread: torch uses all cores for one batch.
        self.executor = ThreadPoolExecutor(1, "linker")
        self.images = ThreadPoolExecutor(4, "images")
        on_batch, on_waiting = self.metrics.batch.observe, self.metrics.waiting.set
        self.batcher = MicroBatcher(
            self.linker.link, self.executor, limits.batch_size, limits.queue, on_batch, on_waiting
        )

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread of the linker."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, partial(function, *arguments))

    def require_mentions(self, count: int) -> None:
        """Refuse too many mentions or entities."""
        if count > self.limits.mentions:
            raise HTTPException(
                422, f"The request has {count:,} mentions; at most {self.limits.mentions:,} are linked at once."
            )

    def require_candidates(self, top_k: int) -> None:
        """Refuse too many candidates."""
        if top_k > self.limits.candidates:
            raise HTTPException(422, f"top_k is {top_k:,}; at most {self.limits.candidates:,} candidates are returned.")

    async def knowledge_base(self) -> KnowledgeBase:
        """The newest version; opening it is no work for the event loop."""
        return await asyncio.to_thread(lambda: self.linker.knowledge_base)

    async def require_images(self, contents: Sequence[bytes]) -> None:
        """Refuse images that cannot be used. They wait as files, which are small, and not as pixels."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.gather(*(loop.run_in_executor(self.images, self._try, content) for content in contents))
        except ImageError as error:
            raise HTTPException(422, f"{error}.") from error

    def _try(self, content: bytes) -> None:
        with opened_image(content, self.limits.pixels):
            pass

    async def records(self, mentions: Sequence[MentionRequest]) -> list[dict[str, Any]]:
        """The records of mentions that can be used."""
        self.limits.require_texts([text for mention in mentions for text in mention.texts()])
        await self.require_images([mention.image for mention in mentions if mention.image is not None])
        return [mention.record() for mention in mentions]

    async def link(self, mentions: Sequence[MentionRequest], top_k: int) -> LinkResponse:
        """Link mentions."""
        self.require_candidates(top_k)
        self.require_mentions(len(mentions))
        found = await self.batcher(await self.records(mentions), top_k, self.limits.seconds)
        answer = LinkResponse.of(found, top_k)
        for each in answer.mentions:
            outcome = "failed" if each.error is not None else "nil" if each.nil else "linked"
            self.metrics.links.labels(outcome).inc()
        return answer
