"""Images decoded once: their pixels on disk, shared by all processes and all data sets."""

from __future__ import annotations

import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mimic_pl.data.file_keys import digest, is_settled, signature
from mimic_pl.errors import StoreError
from mimic_pl.files import lock_folder, readable_bytes
from mimic_pl.key_value_store import KeyValueStore
from mimic_pl.processor.decoding import decode, fingerprint
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageError, ImageFolder

Chain = tuple[ImageFolder, tuple[str, ...]]
"""Images of which one is needed: the first that opens."""

VERSION = 3
"""Of what is stored how; another version fills a folder of its own."""

_FILES, _PIXELS = "files", "pixels"
_FAILURES = {b"u": "unreadable", b"o": "oversized"}
"""How a file fails, by what is stored in place of its content's hash."""

_CODES = {failure: code for code, failure in _FAILURES.items()}
_BOUND_BYTES = 8
_AT_ONCE = 256
"""Images that are written in one transaction."""

_OVERHEAD = 8192
"""Bytes that an image takes besides its pixels at most: LMDB stores whole pages."""

_LARGE = 1_000_000_000
"""Bytes; to write less is not worth a warning."""

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """``mimic_pl/images`` in the user's folder of caches: ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mimic_pl" / "images"


class _Wanted(NamedTuple):
    """An image to be cached: its file, and the most pixels that it may have."""

    path: Path
    max_pixels: int


class _Decoded(NamedTuple):
    """What a thread found: key of the file, hash of its content, and its pixels or its failure.

    Neither pixels nor failure: pixels of this content are stored. No key: the file may be changing, and no entry is
    made. No hash: it cannot be read, and nothing is known.
    """

    wanted: _Wanted
    signature: bytes | None = None
    digest: bytes | None = None
    pixels: Tensor | None = None
    failure: str | None = None


class ImageCache:
    """Pixels of images, as one preprocessing makes them, in a growing store on disk with two tables.

    - ``pixels`` holds every image once, keyed by a hash of its file's content: a data set that is moved or copied
      takes no more room.
    - ``files`` says which content a file has, keyed by its path, its size, and the times of its last changes: a file
      with an entry is not even opened, and one that changed has none, and so never gives old pixels. Files that cannot
      be decoded are in it too, and are tried again when they change.

    Another preprocessing is another folder: its name holds a hash of what becomes of a test image, so that whatever
    changes pixels (size, scale of decoding, a decoder's version) cannot be mistaken.

    It is filled before the first epoch (:meth:`fill`) by threads of one process. What a kill leaves is whole, and the
    next fill goes on from there. An image that is not in it, or damaged in it, is decoded as without a cache: nothing
    depends on the filling, which may fail for lack of room.

    Args:
        root: Folder of all image caches.
        image_processor: Resizes images.
        reduced: JPEGs are decoded at a reduced scale (see :func:`~mimic_pl.processor.decoding.decode`).
        disk_fraction: Largest fraction of the disk's free space that a fill may take.
    """

    def __init__(
        self, root: Path, image_processor: ImageProcessor, reduced: bool = False, disk_fraction: float = 1.0
    ) -> None:
        self.image_processor = image_processor
        self.reduced = reduced
        self.disk_fraction = disk_fraction
        size = image_processor.image_size
        name = f"{size}px-{fingerprint(image_processor, reduced)}-v{VERSION}"
        self.store = KeyValueStore(root.expanduser().absolute() / name, (_FILES, _PIXELS))
        self._shape = 3, size, size

    @property
    def folder(self) -> Path:
        """Where the pixels of this preprocessing are."""
        return self.store.folder

    def load(self, path: Path, max_pixels: int) -> Tensor | str | None:
        """What is stored of an image's file as it is now.

        Returns:
            Its pixels, uint8 ``[3, S, S]``; or how it fails, ``unreadable`` or ``oversized``; or ``None`` if it is not
            in the cache.
        """
        key = signature(path, max_pixels)
        content = None if key is None else self.store.get(_FILES, key)
        if content is None or content in _FAILURES:
            return None if content is None else _FAILURES[content]
        stored = self.store.get(_PIXELS, content)
        if stored is None or len(stored) != _BOUND_BYTES + torch.Size(self._shape).numel():
            return None
        return torch.frombuffer(bytearray(stored), dtype=torch.uint8, offset=_BOUND_BYTES).view(self._shape)

    def fill(self, wanted: Callable[[], Iterable[Chain]]) -> None:
        """Decode what is not there yet, with a progress bar. Failures are left to the loaders, which report them.

        Where there is no room, or the folder cannot be written to, that is logged, and work goes on without.

        Args:
            wanted: Gives the images that will be needed; it is called more than once.

        Raises:
            StoreError: The cache is damaged.
        """
        tried: dict[str, bool] = {}
        if not self._missing(wanted, tried):
            return
        try:
            writer = lock_folder(self.folder, wait=-1)
            try:
                while missing := self._missing(wanted, tried):  # another process may have filled it meanwhile
                    self._announce(len(missing))
                    tried |= self._add(missing)
            finally:
                writer.release()
        except StoreError as error:
            _log.warning(f"Images that the image cache does not hold will be decoded in every epoch. {error}")

    def _missing(self, wanted: Callable[[], Iterable[Chain]], tried: dict[str, bool]) -> dict[str, _Wanted]:
        """By path, what to decode next: of every chain the first image that is neither there nor known to fail.

        Args:
            wanted: The chains.
            tried: By path, images that this fill has tried already, and whether they opened.
        """
        missing: dict[str, _Wanted] = {}
        for folder, names in wanted():
            for name in names:
                path = folder.path(name)
                key = signature(path, folder.max_pixels)
                content = None if key is None else self.store.get(_FILES, key)
                if content is None and key is not None and str(path) not in tried:
                    missing[str(path)] = _Wanted(path, folder.max_pixels)
                    break
                if (content is not None and content not in _FAILURES) or tried.get(str(path), False):
                    break
        return missing

    def _announce(self, count: int) -> None:
        """Log how much will be written, before it is.

        Raises:
            StoreError: It is more than the fraction of the disk that may be taken.
        """
        free = shutil.disk_usage(self.folder).free
        size = self._size_of(count)
        if size > self.disk_fraction * free:
            raise StoreError(
                f"{count} images would take up to {readable_bytes(size)} in {self.folder}, of {readable_bytes(free)} "
                "that are free. Choose a folder with more room: --data.image_cache FOLDER; or none: null."
            )
        _log.log(
            logging.WARNING if size > _LARGE else logging.INFO,
            f"{count} images are decoded once, to {readable_bytes(size)} of pixels in {self.folder}. Another folder: "
            "--data.image_cache FOLDER; none: --data.image_cache null.",
        )

    def _size_of(self, count: int) -> int:
        return count * (torch.Size(self._shape).numel() + _OVERHEAD)

    def _add(self, wanted: dict[str, _Wanted]) -> dict[str, bool]:
        """Decode and write these images, by path.

        Returns:
            By path, whether they opened.

        Raises:
            StoreError: There is no room.
        """
        opened: dict[str, bool] = {}
        title = f"Caching images ({readable_bytes(self._size_of(len(wanted)))})"
        # Pillow decodes outside of the interpreter's lock, so threads share the work.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = tqdm(
                _in_order(pool, self._decode, wanted.values()),
                desc=title,
                total=len(wanted),
                unit="image",
                leave=False,
                delay=1,
            )
            while batch := list(islice(decoded, _AT_ONCE)):
                self.store.put(item for one in batch for item in _entries(one))
                opened |= {str(one.wanted.path): one.digest is not None and one.failure is None for one in batch}
        return opened

    def _decode(self, wanted: _Wanted) -> _Decoded:
        """Hash and decode an image, in a thread."""
        path = wanted.path
        before = signature(path, wanted.max_pixels)
        content = digest(path)
        if content is None:
            return _Decoded(wanted)
        stored = self.store.get(_PIXELS, content)
        pixels, failure = None, None
        if stored is None or int.from_bytes(stored[:_BOUND_BYTES], "little") > wanted.max_pixels:
            try:
                pixels = decode(path, self.image_processor, wanted.max_pixels, self.reduced)
            except ImageError as error:
                if error.kind not in _CODES:
                    return _Decoded(wanted)
                failure = error.kind
        if signature(path, wanted.max_pixels) != before:
            return _Decoded(wanted)  # changed while it was read: the hash may be of other content than the pixels
        return _Decoded(wanted, before if is_settled(path) else None, content, pixels, failure)


def _entries(decoded: _Decoded) -> Iterator[tuple[str, bytes, bytes]]:
    """What is stored of an image: its pixels with the bound that they do not exceed, and the file's content."""
    if decoded.digest is None:
        return
    if decoded.pixels is not None:
        bound = decoded.wanted.max_pixels.to_bytes(_BOUND_BYTES, "little")
        yield _PIXELS, decoded.digest, bound + decoded.pixels.numpy().tobytes()
    if decoded.signature is not None:
        yield _FILES, decoded.signature, decoded.digest if decoded.failure is None else _CODES[decoded.failure]


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Wanted], _Decoded], wanted: Iterable[_Wanted]
) -> Iterator[_Decoded]:
    """What the threads find, in order; so many wait at most that threads go on while a batch is written."""
    ahead = 4 * (os.cpu_count() or 1) + _AT_ONCE
    running: deque[Future[_Decoded]] = deque()
    for one in wanted:
        running.append(pool.submit(work, one))
        if len(running) == ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
