"""Connections end whose clients send the header of a request, or read an answer, too slowly."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """Uvicorn's protocol of a connection with a limit of time, its ``timeout_keep_alive``.

    Uvicorn waits without one for the rest of a header, and until an answer has been read, so that clients who stop in
    the middle would keep their connections and answers in memory for good. The body of a request is the application's.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a header."""
        super().connection_made(transport)
        self._limit()

    def handle_events(self) -> None:
        """Handle what has come in, which may complete a header."""
        super().handle_events()
        if self._answering and not self.flow.write_paused:
            self._stop()

    def on_response_complete(self) -> None:
        """Wait for the next header."""
        super().on_response_complete()
        if not self._answering:
            self._limit()

    def pause_writing(self) -> None:
        """Wait until the client has read."""
        super().pause_writing()
        self._limit()

    def resume_writing(self) -> None:
        """Go on writing, or wait for the next header."""
        super().resume_writing()
        self._stop() if self._answering else self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        super().connection_lost(exc)
        self._stop()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(self.config.timeout_keep_alive, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
