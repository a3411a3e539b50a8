"""The one place where images are opened, and the policy for those that cannot be."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mimic_pl.batch import ImageFailure
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.records import ImageSource

ImagePolicy = Literal["blank", "drop", "error"]
"""What happens to an item whose image fails.

- ``blank``: it is kept, without an image;
- ``drop``: a training mention whose own image fails, or all images of its gold entity, is left out of training.
  Evaluation keeps every mention and entity, blank, since leaving them out would change what is measured;
- ``error``: the first failing image ends the run.
"""

_FATES = {
    "blank": "items without a usable image count as having none",
    "drop": "training leaves such mentions out, evaluation keeps them as having no image",
    "error": "the first one ends the run",
}

MAX_PIXELS = 89_478_485
"""Largest image that is decoded: Pillow's own limit against decompression bombs."""


# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(RuntimeError, struct.error, zlib.error),
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF")
"""Formats that are opened, as Pillow calls them."""

_header_lock = threading.Lock()
_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class ImageError(Exception):
    """An image that cannot be used; ``kind`` and ``path`` say which and why.

    ``path`` describes an image that is no file: ``<image of 120 bytes>``.
    """

    def __init__(self, path: Path | str, kind: str, detail: str) -> None:
        super().__init__(f"The image {path} is {kind}: {detail}")
        self.path = path
        self.kind = kind

    def as_data_error(self) -> DataError:
        """The error that ends the run under the policy ``error``."""
        return DataError(
            f"{self}. Fix the file, or let such images pass with --model.processor.image_policy blank or drop."
        )


def require_policy(policy: str) -> None:
    """Refuse a policy that there is not.

    Raises:
        ConfigError: There is no such policy.
    """
    if policy not in get_args(ImagePolicy):
        raise ConfigError(f"Unknown image policy {policy!r}. There are: {', '.join(get_args(ImagePolicy))}.")


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, reduced_to: int | None = None) -> Image.Image:
    """Open an image as RGB: first frame, turned as EXIF says, transparency on white.

    Args:
        source: A file's path, a file's content, a PIL image, or an array of pixels: uint8 ``[height, width]``,
            ``[height, width, 3]`` or ``[height, width, 4]``. An address on the web is taken for a path.
        max_pixels: Larger images are not decoded.
        reduced_to: Decode a JPEG at the smallest of its scales (1/2, 1/4, 1/8) at which no side is shorter than this.

    Raises:
        ImageError: It is missing, unreadable, or larger than ``max_pixels``.
    """
    name = _name(source)
    try:
        if isinstance(source, (str, Path)) and not stat.S_ISREG(os.stat(source).st_mode):
            raise ImageError(name, "unreadable", "a folder or a device, no file")
        with _opened(source, name) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(name, "oversized", f"{image.width} x {image.height} pixels")
            image.seek(0)
            if reduced_to is not None:
                image.draft(None, (reduced_to, reduced_to))  # other formats have no scales, and do nothing
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageError(name, "missing", "no such file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, "oversized", str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "unreadable", f"not one of {', '.join(FORMATS)}") from error
    except _DECODER_ERRORS as error:
        raise ImageError(name, "unreadable", str(error) or type(error).__name__) from error


def _name(source: ImageSource) -> Path | str:
    if isinstance(source, (str, Path)):
        return Path(source)
    size = f"{len(source)} bytes" if isinstance(source, bytes) else f"type {type(source).__name__}"
    return f"<image of {size}>"


def _opened(source: ImageSource, name: Path | str) -> Image.Image:
    """Open without decoding, and without Pillow's warning of large images: their size is checked elsewhere."""
    if isinstance(source, Image.Image):
        return source.copy()  # of the caller's, which stays open
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or (source.ndim == 3 and source.shape[2] not in (3, 4))
        ):
            found = f"an array of {source.dtype} {list(source.shape)}"
            raise ImageError(name, "unreadable", f"{found}; it must be uint8 [height, width] or [height, width, 3]")
        return Image.fromarray(source)
    if not isinstance(source, (str, Path, bytes)):
        raise ImageError(name, "unreadable", "neither a path, bytes, a PIL image nor an array")
    # Filters of warnings belong to the process, and images are opened in threads too.
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Only raster formats: Pillow hands EPS to Ghostscript, whatever the file is called.
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a channel: Pillow's own conversion would clip them to 8.
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


class ImageFolder:
    """A folder of images, under one policy.

    Args:
        folder: Where the images lie; if it does not exist, all of them are missing.
        policy: What happens where an image fails; ``error`` is applied here, the others where items are made.
        max_pixels: Larger images count as oversized.
        renamed: Also look for the name's stem with ``.jpg``, as the published mention images are stored.
    """

    def __init__(self, folder: Path, policy: ImagePolicy, max_pixels: int = MAX_PIXELS, renamed: bool = False) -> None:
        require_policy(policy)
        self.folder = folder
        self.policy = policy
        self.max_pixels = max_pixels
        self.renamed = renamed

    def warn_if_absent(self, named: Iterable[object]) -> None:
        """Say that the folder is not there, if any record names an image in it."""
        if not self.folder.is_dir() and any(named):
            _log.warning(
                f"There is no folder {self.folder} (nor one with the plural's s), so that every image that its "
                "records name is missing. Unpack the images there."
            )

    def path(self, name: str) -> Path:
        """Where an image lies, or would lie."""
        path = self.folder / name
        # os.path.isfile: unlike Path.is_file it takes a name that is too long for a file for one that is not there.
        if self.renamed and not os.path.isfile(path):
            stem = PurePosixPath(name.replace("\\", "/")).name.split(".")[0]
            if os.path.isfile(self.folder / f"{stem}.jpg"):
                return self.folder / f"{stem}.jpg"
        return path

    def first_readable(self, names: Sequence[str]) -> tuple[Image.Image | None, list[ImageFailure]]:
        """The first of these images that opens, and those that failed before it.

        Raises:
            DataError: One failed and the policy is ``error``.
        """
        return self.first(names, lambda path: open_image(path, self.max_pixels))

    def first(self, names: Sequence[str], load: Callable[[Path], Loaded]) -> tuple[Loaded | None, list[ImageFailure]]:
        """What ``load`` makes of the first of these images for which it raises no ImageError; and the failures.

        Raises:
            DataError: One failed and the policy is ``error``.
        """
        failures: list[ImageFailure] = []
        for name in names:
            try:
                return load(self.path(name)), failures
            except ImageError as error:
                if self.policy == "error":
                    raise error.as_data_error() from error
                failures.append((str(error.path), error.kind))
        return None, failures


@dataclass
class ImageReport:
    """Counts the images that failed, each file once, over all epochs, workers and stages."""

    failures: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def add(self, failures: Sequence[ImageFailure]) -> None:
        """Count these, but for those that were told of before."""
        self.failures.update((path, kind) for path, kind in failures if path not in self.told)

    def log(self, policy: ImagePolicy, processes: ProcessGroup) -> None:
        """Say once what failed, on the first process what did so on any."""
        for others in processes.gather_objects(self.failures):
            self.add(list(others.items()))
        if not self.failures:
            return
        if processes.rank == 0:
            counts = Counter(self.failures.values())
            kinds = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
            examples = ", ".join(sorted(self.failures)[:3])
            _log.warning(
                f"{len(self.failures)} images could not be used ({kinds}), for example {examples}. Policy "
                f"{policy!r}: {_FATES[policy]}. `mimic-pl doctor` lists what is wrong with a folder."
            )
        self.told.update(self.failures)
        self.failures.clear()
