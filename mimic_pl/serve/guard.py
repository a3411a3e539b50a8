"""Around every request: limits on its size and time, metrics, and a line in the log without its content."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from mimic_pl.serve.limits import Limits
from mimic_pl.serve.request_body import App, Message, Receive, RefusedError, Send, read_body
from mimic_pl.serve.server_metrics import ServerMetrics

log = logging.getLogger("mimic_pl.serve.requests")
"""One JSON object per request: time, method, route, status, milliseconds."""


class Guard:
    """ASGI middleware.

    Args:
        app: The application.
        limits: What is accepted.
        metrics: Counts requests.
    """

    def __init__(self, app: App, limits: Limits, metrics: ServerMetrics) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                body = await read_body(scope, receive, self._limits)
            except RefusedError as error:
                # The rest of the body is not read, so that the connection cannot be used again.
                answer = JSONResponse({"detail": error.detail}, error.status, {"Connection": "close"})
                await answer(scope, receive, recorded)
                return
            await self._app(scope, body, recorded)
        finally:
            seconds = time.monotonic() - start
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            line = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "milliseconds": round(1000 * seconds, 1),
            }
            log.info(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line}))
