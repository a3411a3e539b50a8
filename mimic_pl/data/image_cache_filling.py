"""Fills an image cache: threads decode, one process writes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mimic_pl.data.file_keys import KEY_BYTES, KeyTable, digest, is_settled, signature
from mimic_pl.files import readable_bytes
from mimic_pl.processor.decoding import decode
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageError
from mimic_pl.store import Store, StoreWriter

FAILURES = {-1: "unreadable", -2: "oversized"}
"""How an image fails, by the number that stands in place of its row."""

_ENTRIES = 4096
"""Files whose entries are written at once. Of those that a kill loses the pixels are there; they are hashed again."""

_CODES = {failure: code for code, failure in FAILURES.items()}


class Wanted(NamedTuple):
    """An image to be cached: its file, and the most pixels that it may have."""

    path: Path
    max_pixels: int


class _Seen(NamedTuple):
    """What a thread found: key of the file, hash of its content, and its pixels or its failure.

    Neither pixels nor failure: pixels of this content are there. No key: the file may be changing, and no
    entry is made. No hash: it cannot be read, and nothing is known.
    """

    wanted: Wanted
    signature: bytes | None = None
    digest: bytes | None = None
    pixels: Tensor | None = None
    failure: str | None = None


class Filling:
    """Adds images to the two stores of an image cache (see :class:`~mimic_pl.data.image_cache.ImageCache`).

    Args:
        pixels: Writes rows of ``pixels``, ``digest`` (hash of the file's content) and ``bound`` (a ``max_pixels`` that
            the image does not exceed).
        files: Writes ``signature`` and ``row``.
        there: The rows that are there already.
        image_processor: Resizes.
        reduced: Decode at a reduced scale.
    """

    def __init__(
        self,
        pixels: StoreWriter,
        files: StoreWriter,
        there: Store | None,
        image_processor: ImageProcessor,
        reduced: bool,
    ) -> None:
        self.pixels = pixels
        self.files = files
        self.image_processor = image_processor
        self.reduced = reduced
        rows = 0 if there is None else len(there)
        empty = {"digest": torch.zeros(0, KEY_BYTES, dtype=torch.uint8), "bound": torch.zeros(0, dtype=torch.int64)}
        known = empty if there is None else there.select(torch.arange(rows), ("digest", "bound"))
        self._there = KeyTable(known["digest"].numpy(), torch.arange(rows).numpy())
        self._bounds = known["bound"]
        self._new: dict[bytes, tuple[int, int]] = {}
        self._entries: list[tuple[bytes, int]] = []

    def run(self, wanted: dict[str, Wanted]) -> dict[str, bool]:
        """Decode and write these images, by path.

        Returns:
            By path, whether they opened.

        Raises:
            StoreError: There is no room.
        """
        opened = {}
        title = f"Caching images ({readable_bytes(self.pixels.bytes_for(len(wanted)))})"
        # Pillow decodes outside of the interpreter's lock, so threads share the work.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            seen = self._seen(pool, wanted.values())
            for one in tqdm(seen, desc=title, total=len(wanted), unit="image", leave=False, delay=1):
                opened[str(one.wanted.path)] = one.digest is not None and one.failure is None
                self._enter(one)
        self._flush()
        return opened

    def _seen(self, pool: ThreadPoolExecutor, wanted: Iterable[Wanted]) -> Iterator[_Seen]:
        """What the threads find, in order; so many wait at most that threads do not while a shard is written."""
        ahead = 4 * (os.cpu_count() or 1) + self.pixels.rows_per_shard
        running: deque[Future[_Seen]] = deque()
        for one in wanted:
            running.append(pool.submit(self._look, one))
            if len(running) == ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _look(self, wanted: Wanted) -> _Seen:
        """Hash and decode an image, in a thread."""
        path = wanted.path
        before = signature(path, wanted.max_pixels)
        content = digest(path)
        if content is None:
            return _Seen(wanted)
        row, bound = self._known(content)
        pixels, failure = None, None
        if row is None or bound > wanted.max_pixels:
            try:
                pixels = decode(path, self.image_processor, wanted.max_pixels, self.reduced)
            except ImageError as error:
                if error.kind not in _CODES:
                    return _Seen(wanted)
                failure = error.kind
        if signature(path, wanted.max_pixels) != before:
            return _Seen(wanted)  # changed while it was read: the hash may be of other content than the pixels
        return _Seen(wanted, before if is_settled(path) else None, content, pixels, failure)

    def _known(self, content: bytes) -> tuple[int | None, int]:
        """Row and bound of an image with this content."""
        if content in self._new:
            return self._new[content]
        row = self._there.get(content)
        return row, 0 if row is None else int(self._bounds[row])

    def _enter(self, seen: _Seen) -> None:
        """Add what a thread found to the stores."""
        if seen.digest is None:
            return
        if seen.failure is not None:
            row = _CODES[seen.failure]
        else:
            known, _ = self._known(seen.digest)  # perhaps since the thread looked
            row = self._add(seen) if known is None else known
        if seen.signature is not None:
            self._entries.append((seen.signature, row))
            if len(self._entries) == _ENTRIES:
                self._flush()

    def _add(self, seen: _Seen) -> int:
        assert seen.pixels is not None and seen.digest is not None
        row = self.pixels.next_row
        self.pixels.append(
            {
                "pixels": seen.pixels[None],
                "digest": _as_rows([seen.digest]),
                "bound": torch.tensor([seen.wanted.max_pixels]),
            }
        )
        self._new[seen.digest] = row, seen.wanted.max_pixels
        return row

    def _flush(self) -> None:
        """Write the entries, after the rows that they name."""
        self.pixels.commit()
        if self._entries:
            keys, rows = zip(*self._entries, strict=True)
            self.files.append({"signature": _as_rows(keys), "row": torch.tensor(rows)})
            self.files.commit()
            self._entries.clear()


def _as_rows(keys: Iterable[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
