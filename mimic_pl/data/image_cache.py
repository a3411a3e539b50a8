"""On-disk cache of decoded images and of the hashes of image files, shared by all processes and data sets."""

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

import PIL
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mimic_pl.data.file_keys import KEY_BYTES, digest, digests, is_settled, signature
from mimic_pl.errors import StoreError
from mimic_pl.files import lock_folder, readable_bytes
from mimic_pl.home import expanded
from mimic_pl.key_value_store import KeyValueStore
from mimic_pl.processor.decoding import decode, fingerprint
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageError, ImageFolder

Chain = tuple[ImageFolder, tuple[str, ...]]
"""A fallback chain of images: the first that opens is used."""

VERSION = 4
"""Version of the storage format; each version uses its own folder."""

_FILES, _PIXELS, _DIGESTS = "files", "pixels", "digests"
_FAILURES = {f"{kind} {PIL.__version__}".encode(): kind for kind in ("unreadable", "oversized")}
"""Why a file fails, by what is stored in place of its content hash; other versions of Pillow try again."""

_CODES = {failure: code for code, failure in _FAILURES.items()}
_BOUND_BYTES = 8
_TRANSACTION_SIZE = 256
"""Images written in one transaction."""

_OVERHEAD = 8192
"""Maximum bytes per image in addition to its pixels: LMDB stores whole pages."""

_LARGE = 1_000_000_000
"""Bytes; writing more is logged as a warning."""

_log = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    """An image to cache: its file and its maximum number of pixels."""

    path: Path
    max_pixels: int


class _Decoded(NamedTuple):
    """Result of a decoding thread: signature of the file, hash of its content, and its pixels or its failure.

    With neither pixels nor failure, the pixels of this content are stored already. Without a signature, the file may be
    changing, and no entry is written for it. Without a hash, it could not be read.
    """

    wanted: _Wanted
    signature: bytes | None = None
    digest: bytes | None = None
    pixels: Tensor | None = None
    failure: str | None = None


class ImageCache:
    """Preprocessed pixels of images, in an append-only store on disk with three tables.

    - ``pixels`` contains every image once, keyed by a hash of its file's content: moving or copying a data set takes no
      more space.
    - ``files`` maps a file to its content hash, keyed by its path, size and timestamps: a file with an entry is not
      even opened, and a changed file has none, so stale pixels are never used. Files that cannot be decoded are also
      recorded, and are retried after they change.
    - ``digests`` maps files that are not needed as pixels to their content hash, in the same way.

    Each preprocessing has its own folder, named by a hash of a preprocessed test image, so that anything that changes
    pixels (size, scale of decoding, version of a decoder) leads to another folder.

    The cache is filled before the first epoch (:meth:`fill`) by threads of one process. After a kill it is consistent,
    and the next fill resumes. An image that is missing or corrupted in the cache is decoded from its file: nothing
    depends on the filling, which may fail if the disk is full.

    Args:
        root: Folder of all image caches.
        image_processor: Resizes images.
        reduced: Decode JPEGs at a reduced scale (see :func:`~mimic_pl.processor.decoding.decode`).
        disk_fraction: Maximum fraction of the free disk space that a fill may use.
    """

    def __init__(
        self, root: Path, image_processor: ImageProcessor, reduced: bool = False, disk_fraction: float = 1.0
    ) -> None:
        self.image_processor = image_processor
        self.reduced = reduced
        self.disk_fraction = disk_fraction
        size = image_processor.image_size
        name = f"{size}px-{fingerprint(image_processor, reduced)}-v{VERSION}"
        self.store = KeyValueStore(expanded(root).absolute() / name, (_FILES, _PIXELS, _DIGESTS))
        self._shape = 3, size, size

    @property
    def folder(self) -> Path:
        """Folder of this preprocessing."""
        return self.store.folder

    def load(self, path: Path, max_pixels: int) -> Tensor | str | None:
        """Look up an image file in its current state.

        Returns:
            Its pixels, uint8 ``[3, S, S]``; or its failure, ``unreadable`` or ``oversized``; or ``None`` if it is not
            in the cache.
        """
        content = self._content(signature(path, max_pixels))
        if content is None or content in _FAILURES:
            return None if content is None else _FAILURES[content]
        stored = self.store.get(_PIXELS, content)
        if stored is None or len(stored) != _BOUND_BYTES + torch.Size(self._shape).numel():
            return None
        return torch.frombuffer(bytearray(stored), dtype=torch.uint8, offset=_BOUND_BYTES).view(self._shape)

    def digests(self, paths: Iterable[Path], max_pixels: int) -> Iterator[bytes | None]:
        """Hash of the content of each file, ``None`` if it cannot be read; files that did not change are not read.

        Raises:
            StoreError: The cache is corrupted.
        """
        left = iter(paths)
        while chunk := list(islice(left, _TRANSACTION_SIZE)):
            keys = [signature(path, max_pixels) for path in chunk]
            found = [self._stored_digest(key) for key in keys]
            unknown = [n for n, content in enumerate(found) if content is None and keys[n] is not None]
            new: list[tuple[str, bytes, bytes]] = []
            for n, content in zip(unknown, digests([chunk[n] for n in unknown]), strict=True):
                found[n], key = content, signature(chunk[n], max_pixels)
                # Not if it changed while it was read, or may still change unnoticed.
                if content is not None and key is not None and key == keys[n] and is_settled(chunk[n]):
                    new.append((_DIGESTS, key, content))
            if new:
                try:
                    self.store.put(new)
                except StoreError as error:
                    _log.warning(f"Hashes of image files cannot be cached and are computed again by every run. {error}")
            yield from found

    def _stored_digest(self, key: bytes | None) -> bytes | None:
        content = self._content(key)
        if key is None or (content is not None and content not in _FAILURES):
            return content
        return self.store.get(_DIGESTS, key)

    def _content(self, key: bytes | None) -> bytes | None:
        """Content hash or failure of a file with this signature; ``None`` if it is not known."""
        content = None if key is None else self.store.get(_FILES, key)
        return content if content is None or len(content) == KEY_BYTES or content in _FAILURES else None

    def fill(self, wanted: Callable[[], Iterable[Chain]]) -> None:
        """Decode missing images, with a progress bar. Failing images are reported later, by the loaders.

        A full disk or a folder that is not writable is only logged.

        Args:
            wanted: Returns the images that will be needed; called more than once.

        Raises:
            StoreError: The cache is corrupted.
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
            _log.warning(f"Images missing in the image cache will be decoded in every epoch. {error}")

    def _missing(self, wanted: Callable[[], Iterable[Chain]], tried: dict[str, bool]) -> dict[str, _Wanted]:
        """Images to decode next, by path: the first of every chain that is neither cached nor known to fail.

        Args:
            wanted: The chains.
            tried: By path, whether the images already tried in this fill opened.
        """
        missing: dict[str, _Wanted] = {}
        for folder, names in wanted():
            for name in names:
                path = folder.path(name)
                key = signature(path, folder.max_pixels)
                content = self._content(key)
                if content is None and key is not None and str(path) not in tried:
                    missing[str(path)] = _Wanted(path, folder.max_pixels)
                    break
                if (content is not None and content not in _FAILURES) or tried.get(str(path), False):
                    break
        return missing

    def _announce(self, count: int) -> None:
        """Log the size before writing.

        Raises:
            StoreError: It exceeds the allowed fraction of the disk.
        """
        free = shutil.disk_usage(self.folder).free
        size = self._size_of(count)
        if size > self.disk_fraction * free:
            raise StoreError(
                f"{count} images would take up to {readable_bytes(size)} in {self.folder}, with {readable_bytes(free)} "
                "free. Choose a folder with more space: --data.image_cache FOLDER; or disable the cache: null."
            )
        _log.log(
            logging.WARNING if size > _LARGE else logging.INFO,
            f"Caching {count} decoded images, up to {readable_bytes(size)}, in {self.folder}. To use another folder: "
            "--data.image_cache FOLDER; to disable the cache: --data.image_cache null.",
        )

    def _size_of(self, count: int) -> int:
        return count * (torch.Size(self._shape).numel() + _OVERHEAD)

    def _add(self, wanted: dict[str, _Wanted]) -> dict[str, bool]:
        """Decode and write images, given by path.

        Returns:
            By path, whether they opened.

        Raises:
            StoreError: The disk is full.
        """
        opened: dict[str, bool] = {}
        title = f"Caching images ({readable_bytes(self._size_of(len(wanted)))})"
        # Pillow releases the GIL while decoding, so threads run in parallel.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(
                _in_order(pool, self._decode, wanted.values()),
                desc=title,
                total=len(wanted),
                unit="image",
                leave=False,
                delay=1,
            )
            decoded = iter(bar)  # once: a second iteration over the bar would close what it iterates over
            while batch := list(islice(decoded, _TRANSACTION_SIZE)):
                self.store.put(item for one in batch for item in _entries(one))
                opened |= {str(one.wanted.path): one.digest is not None and one.failure is None for one in batch}
        return opened

    def _decode(self, wanted: _Wanted) -> _Decoded:
        """Hash and decode an image (runs in a thread)."""
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
            return _Decoded(wanted)  # changed while reading: hash and pixels may be of different content
        return _Decoded(wanted, before if is_settled(path) else None, content, pixels, failure)


def _entries(decoded: _Decoded) -> Iterator[tuple[str, bytes, bytes]]:
    """Entries stored for an image: its pixels with their ``max_pixels`` bound, and the file's content hash."""
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
    """Results of the threads, in order; limited prefetching keeps them busy while a batch is written."""
    ahead = 4 * (os.cpu_count() or 1) + _TRANSACTION_SIZE
    running: deque[Future[_Decoded]] = deque()
    for one in wanted:
        running.append(pool.submit(work, one))
        if len(running) == ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
