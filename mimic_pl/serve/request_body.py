"""Reads the body of a request within limits of its size and time, before the application sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mimic_pl.serve.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class RefusedError(Exception):
    """A request that is not read to its end.

    Args:
        status: Status code of the answer.
        detail: Why.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


async def read_body(scope: MutableMapping[str, Any], receive: Receive, limits: Limits) -> Receive:
    """Read the whole body; returns what the application receives instead.

    Raises:
        RefusedError: It is too large, comes too slowly, or its client has gone.
    """
    limit, seconds = limits.body, limits.seconds
    refused = RefusedError(413, f"The request is larger than {limit:,} bytes.")
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise refused
    parts, size, deadline = [], 0, time.monotonic() + seconds
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise RefusedError(408, f"The request was not complete after {seconds:g} s.") from error
        if message["type"] != "http.request":  # half of a request is not to be carried out
            raise RefusedError(400, "The request has ended before its end.")
        size += len(message.get("body", b""))
        if size > limit:
            raise refused
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
    parts.clear()

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again
