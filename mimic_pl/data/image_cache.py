"""Images decoded once: their pixels on disk, shared by all processes and all data sets."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mimic_pl.data.file_keys import KEY_BYTES, KeyTable, signature
from mimic_pl.data.image_cache_filling import FAILURES, Filling, Wanted
from mimic_pl.errors import StoreError
from mimic_pl.files import readable_bytes
from mimic_pl.processor.decoding import fingerprint
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageFolder
from mimic_pl.store import STORE_VERSION, Column, Store, StoreWriter

Chain = tuple[ImageFolder, tuple[str, ...]]
"""Images of which one is needed: the first that opens."""

_PIXELS, _FILES = "image cache", "image cache's files"
_KEY = Column(torch.uint8, (KEY_BYTES,))
_LOUD = 1_000_000_000
"""Bytes; to write less is not worth a warning."""

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """``mimic_pl/images`` in the user's folder of caches: ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mimic_pl" / "images"


class ImageCache:
    """Pixels of images, as one preprocessing makes them, in two growing stores on disk.

    - ``pixels`` holds every image once, keyed by a hash of its file's content: a data set that is moved or copied
      takes no more room.
    - ``files`` says which row of ``pixels`` a file is, keyed by its path, its size, and the times of its last changes:
      a file with an entry is not even opened, and one that changed has none, and so never gives old pixels. Files that
      cannot be decoded are in it too, and are tried again when they change.

    Another preprocessing is another folder: its name holds a hash of what becomes of a test image, so that whatever
    changes pixels (size, scale of decoding, a decoder's version) cannot be mistaken.

    It is filled before the first epoch (:meth:`fill`) by threads of one process; another one waits and then finds it
    filled. What a kill leaves is whole, and the next fill goes on from there. An image that is not in it is decoded as
    it is without a cache: nothing depends on the filling, which may fail for lack of room.

    Args:
        root: Folder of all image caches.
        image_processor: Resizes images.
        reduced: JPEGs are decoded at a reduced scale (see :func:`~mimic_pl.processor.decoding.decode`).
        share: Largest part of the disk's free space that a fill may take.
    """

    def __init__(self, root: Path, image_processor: ImageProcessor, reduced: bool = False, share: float = 1.0) -> None:
        self.image_processor = image_processor
        self.reduced = reduced
        self.share = share
        size, made = image_processor.image_size, fingerprint(image_processor, reduced)
        # A later version that writes stores otherwise fills a folder of its own.
        self.folder = root.expanduser().absolute() / f"{size}px-{made}-v{STORE_VERSION}"
        self._description = {"size": size, "reduced decoding": reduced, "preprocessing": made}
        self._loaded: _Loaded | None = None

    def find(self, path: Path, max_pixels: int) -> int | str | None:
        """What is known of an image's file as it is now.

        Returns:
            Its row; or how it fails, ``unreadable`` or ``oversized``; or ``None`` if it is not in the cache.
        """
        key = signature(path, max_pixels)
        row = None if key is None else self._load().files.get(key)
        return row if row is None or row >= 0 else FAILURES[row]

    def pixels(self, rows: Tensor) -> Tensor:
        """Pixels at these rows, int64 ``[n]``.

        Returns:
            uint8 ``[n, 3, S, S]``.
        """
        store = self._load().pixels
        assert store is not None, "rows come from find"
        return store.select(rows, ("pixels",))["pixels"]

    def fill(self, wanted: Callable[[], Iterable[Chain]]) -> None:
        """Decode what is not there yet, with a progress bar. Failures are left to the loaders, which report them.

        Where there is no room, or the folder cannot be written to, it says so and goes on without.

        Args:
            wanted: Gives the images that will be needed; it is called more than once.

        Raises:
            StoreError: The cache is damaged.
        """
        self._loaded = None
        tried: dict[str, bool] = {}
        if not self._missing(wanted, tried):
            return
        try:
            size = self.image_processor.image_size
            columns = {"pixels": Column(torch.uint8, (3, size, size)), "digest": _KEY, "bound": Column(torch.int64)}
            with (
                self._writer("pixels", _PIXELS, columns) as pixels,
                self._writer("files", _FILES, {"signature": _KEY, "row": Column(torch.int64)}) as files,
            ):
                self._loaded = None  # another process may have filled it while this one waited
                filling = Filling(pixels, files, self._open("pixels", _PIXELS), self.image_processor, self.reduced)
                while missing := self._missing(wanted, tried):
                    self._announce(pixels.bytes_for(len(missing)), len(missing))
                    tried |= filling.run(missing)
                    self._loaded = None
        except StoreError as error:
            _log.warning(f"Images that the image cache does not hold will be decoded in every epoch. {error}")

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this process."""
        return {**self.__dict__, "_loaded": None}

    def _missing(self, wanted: Callable[[], Iterable[Chain]], tried: dict[str, bool]) -> dict[str, Wanted]:
        """By path, what to decode next: of every chain the first image that is neither there nor known to fail.

        Args:
            wanted: The chains.
            tried: By path, images that this fill has tried already, and whether they opened.
        """
        missing: dict[str, Wanted] = {}
        files = self._load().files
        for folder, names in wanted():
            for name in names:
                path = folder.path(name)
                key = signature(path, folder.max_pixels)
                row = None if key is None else files.get(key)
                if row is None and key is not None and str(path) not in tried:
                    missing[str(path)] = Wanted(path, folder.max_pixels)
                    break
                if (row is not None and row >= 0) or tried.get(str(path), False):
                    break
        return missing

    def _announce(self, size: int, count: int) -> None:
        """Say how much will be written, before it is.

        Raises:
            StoreError: It is more than the share of the disk that may be taken.
        """
        free = shutil.disk_usage(self.folder).free
        if size > self.share * free:
            raise StoreError(
                f"{count} images would take up to {readable_bytes(size)} in {self.folder}, of {readable_bytes(free)} "
                "that are free. Choose a folder with more room: --data.image_cache FOLDER; or none: null."
            )
        _log.log(
            logging.WARNING if size > _LOUD else logging.INFO,
            f"{count} images are decoded once, to {readable_bytes(size)} of pixels in {self.folder}. Another folder: "
            "--data.image_cache FOLDER; none: --data.image_cache null.",
        )

    def _writer(self, name: str, kind: str, columns: dict[str, Column]) -> StoreWriter:
        return StoreWriter(self.folder / name, kind, columns, description=self._description, wait=-1)

    def _open(self, name: str, kind: str) -> Store | None:
        if not Store.exists(self.folder / name):
            return None
        # No checksums: they cost a reading of all images, and a damaged byte is one wrong shade.
        return Store.open(self.folder / name, kind, self._description, check=False)

    def _load(self) -> _Loaded:
        """The stores as they were when this process first looked."""
        if self._loaded is None:
            # In this order: a row is written before a file's entry with its number.
            files = self._open("files", _FILES)
            pixels = self._open("pixels", _PIXELS)
            if files is None:
                table = KeyTable(torch.zeros(0, KEY_BYTES, dtype=torch.uint8).numpy(), torch.zeros(0).long().numpy())
            else:
                entries = files.select(torch.arange(len(files)))
                table = KeyTable(entries["signature"].numpy(), entries["row"].numpy())
            self._loaded = _Loaded(pixels, table)
        return self._loaded


class _Loaded(NamedTuple):
    """What a process has opened: the store of pixels, and by file signature the rows in it."""

    pixels: Store | None
    files: KeyTable
