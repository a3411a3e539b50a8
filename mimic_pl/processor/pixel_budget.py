"""Limits the memory of the images that the threads of a process decode at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Lets threads decode images that together have at most a number of pixels; further threads wait.

    Args:
        pixels: The number of pixels. A larger image is decoded alone.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)  # a fork has no copies of the threads of its parent

    def _begin(self) -> None:
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Reserve pixels for the duration of the block, when enough are available; not to be nested."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self.pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()
