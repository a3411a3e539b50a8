"""Opens images, and defines the policy for those that cannot be opened."""

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
from collections.abc import Callable, Sequence
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
"""Policy for items whose image fails.

- ``blank``: the item is kept, without an image;
- ``drop``: a training mention is excluded if its own image fails, or all images of its gold entity. Evaluation keeps
  every mention and entity, without an image, since excluding them would change the metrics;
- ``error``: the first failing image aborts the run.
"""

_OUTCOMES = {
    "blank": "items without a usable image are treated as having none",
    "drop": "training excludes such mentions, evaluation treats them as having no image",
    "error": "the first one aborts the run",
}

MAX_PIXELS = 89_478_485
"""Default maximum number of pixels: Pillow's own limit against decompression bombs."""


# Raised by Pillow's decoders for corrupted files.
_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(RuntimeError, struct.error, zlib.error),
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF")
"""Supported formats, by Pillow's names."""

_header_lock = threading.Lock()
_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class ImageError(Exception):
    """An image that cannot be used.

    Attributes:
        path: The image's path; a description if it is not a file: ``<image of 120 bytes>``.
        kind: ``missing``, ``unreadable`` or ``oversized``.
    """

    def __init__(self, path: Path | str, kind: str, detail: str) -> None:
        super().__init__(f"The image {path} is {kind}: {detail}")
        self.path = path
        self.kind = kind

    def as_data_error(self) -> DataError:
        """The error that aborts the run under the policy ``error``."""
        return DataError(
            f"{self}. Fix the file, or accept such images with --model.processor.image_policy blank or drop."
        )


def require_policy(policy: str) -> None:
    """Check the name of a policy.

    Raises:
        ConfigError: There is no such policy.
    """
    if policy not in get_args(ImagePolicy):
        raise ConfigError(f"Unknown image policy {policy!r}. Choose one of: {', '.join(get_args(ImagePolicy))}.")


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, reduced_to: int | None = None) -> Image.Image:
    """Open an image as RGB: first frame, EXIF orientation applied, transparency on white.

    Args:
        source: A file path, the content of a file, a PIL image, or a pixel array: uint8 ``[height, width]``,
            ``[height, width, 3]`` or ``[height, width, 4]``. URLs are treated as paths.
        max_pixels: Larger images are not decoded.
        reduced_to: Decode a JPEG at the smallest of its scales (1/2, 1/4, 1/8) at which no side is shorter than this.

    Raises:
        ImageError: It is missing, unreadable, or larger than ``max_pixels``.
    """
    name = _name(source)
    try:
        if isinstance(source, (str, Path)) and not stat.S_ISREG(os.stat(source).st_mode):
            raise ImageError(name, "unreadable", "it is a folder or a device, not a file")
        with _opened(source, name) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(name, "oversized", f"{image.width} x {image.height} pixels")
            image.seek(0)
            if reduced_to is not None:
                image.draft(None, (reduced_to, reduced_to))  # does nothing for other formats
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
    """Open without decoding, and without Pillow's warning about large images, whose size is checked by the caller."""
    if isinstance(source, Image.Image):
        return source.copy()  # the caller's image stays open
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
    # Warning filters are global, and images are also opened in threads.
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Only raster formats: Pillow would pass EPS to Ghostscript, regardless of the file name.
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits per channel, which Pillow's own conversion would clip to 8.
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


class ImageFolder:
    """A folder of images with an image policy.

    Args:
        folder: The folder; if it does not exist, all of its images are missing.
        policy: The image policy; ``error`` is applied here, the others by the callers.
        max_pixels: Larger images count as oversized.
        renamed: Also look for the name's stem with ``.jpg``, as the published mention images are stored.
    """

    def __init__(self, folder: Path, policy: ImagePolicy, max_pixels: int = MAX_PIXELS, renamed: bool = False) -> None:
        require_policy(policy)
        self.folder = folder
        self.policy = policy
        self.max_pixels = max_pixels
        self.renamed = renamed

    def path(self, name: str) -> Path:
        """Path of an image, whether it exists or not."""
        path = self.folder / name
        # os.path.isfile: unlike Path.is_file, it returns False for a name that is too long.
        if self.renamed and not os.path.isfile(path):
            stem = PurePosixPath(name.replace("\\", "/")).name.split(".")[0]
            if os.path.isfile(self.folder / f"{stem}.jpg"):
                return self.folder / f"{stem}.jpg"
        return path

    def first_readable(self, names: Sequence[str]) -> tuple[Image.Image | None, list[ImageFailure]]:
        """The first of these images that opens, and the failures before it.

        Raises:
            DataError: An image failed and the policy is ``error``.
        """
        return self.first(names, lambda path: open_image(path, self.max_pixels))

    def first(self, names: Sequence[str], load: Callable[[Path], Loaded]) -> tuple[Loaded | None, list[ImageFailure]]:
        """The result of ``load`` for the first of these images that does not raise an ImageError, and the failures.

        Raises:
            DataError: An image failed and the policy is ``error``.
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
    """Collects failed images, each file once, over all epochs, workers and stages."""

    failures: dict[str, str] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def add(self, failures: Sequence[ImageFailure]) -> None:
        """Add failures that were not reported yet."""
        self.failures.update((path, kind) for path, kind in failures if path not in self.reported)

    def log(self, policy: ImagePolicy, processes: ProcessGroup) -> None:
        """Log new failures of all processes, on the first process."""
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
                f"{policy!r}: {_OUTCOMES[policy]}. `mimic-pl doctor` lists the problems of a folder."
            )
        self.reported.update(self.failures)
        self.failures.clear()
