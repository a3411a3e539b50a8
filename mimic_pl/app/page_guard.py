"""Which requests the page answers. Gradio has many more routes, some of which open files or addresses of a request."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse

from mimic_pl.serve.limits import Limits
from mimic_pl.serve.request_body import App, Message, Receive, RefusedError, Send, read_body

_JOIN = "/gradio_api/queue/join"

_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.+"
    r"|/gradio_api/(queue/data|heartbeat/\w+|startup-events|info/?|theme\.css)"
)
_WRITE = re.compile(rf"{_JOIN}|/gradio_api/(cancel|reset)/?")

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'; object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing is loaded from, or sent to, another host."""


_INTERVAL = 0.5
"""Seconds between looks at whether the server is to end."""


class PageGuard:
    """ASGI middleware: only the routes of the page, bodies within limits, no files among the values.

    Args:
        app: The application.
        limits: What is accepted.
        ending: Whether the server is to end. Each open page has a stream of events, which it would wait for.
    """

    def __init__(self, app: App, limits: Limits, ending: Callable[[], bool]) -> None:
        self._app = app
        self._limits = limits
        self._ending = ending

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _request(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            body = await self._accepted(scope, receive)
        except RefusedError as error:
            answer = JSONResponse({"detail": error.detail}, error.status, {"Connection": "close"})
            await answer(scope, receive, guarded)
            return
        await self._app(scope, body, guarded)

    async def _accepted(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        allowed = _READ if scope["method"] in ("GET", "HEAD") else _WRITE if scope["method"] == "POST" else None
        if allowed is None or not allowed.fullmatch(scope["path"]):
            raise RefusedError(404, "There is no such page.")
        body = await read_body(scope, receive, self._limits)
        first: list[Message] = [await body()]
        if scope["path"] == _JOIN and not _has_plain_values(first[0].get("body", b"")):
            raise RefusedError(422, "The values of a request are texts and numbers.")

        async def again() -> Message:
            if first:
                return first.pop()
            rest = asyncio.ensure_future(body())
            try:
                while not self._ending():
                    if (await asyncio.wait([rest], timeout=_INTERVAL))[0]:
                        return rest.result()
            finally:
                rest.cancel()
            return {"type": "http.disconnect"}

        return again


def _has_plain_values(body: bytes) -> bool:
    """Whether the values are texts and numbers: Gradio would open a file or an address that one of them names."""
    try:
        values = json.loads(body)["data"]
        return isinstance(values, list) and all(each is None or isinstance(each, (str, int, float)) for each in values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
