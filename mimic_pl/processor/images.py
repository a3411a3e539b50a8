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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mimic_pl.batch import ImageFailure
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import DataError
from mimic_pl.files import readable_bytes
from mimic_pl.formats.renamed_files import RenamedFiles
from mimic_pl.processor.grey_levels import to_8_bits
from mimic_pl.processor.jpeg_scans import has_too_many_scans
from mimic_pl.processor.pixel_budget import PixelBudget
from mimic_pl.ranges import COUNT, in_range, one_of
from mimic_pl.records import ImageSource
from mimic_pl.remote_path import RemotePath

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

MAX_BYTES = 1 << 31
"""Maximum size of a file: reading a damaged or sparse file of any size could take hours."""

# Raised by Pillow's decoders for corrupted files.
_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(RuntimeError, struct.error, zlib.error),
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF")
"""Supported formats, by Pillow's names."""

FAILURES = ("missing", "ambiguous", "unreadable", "oversized")
"""Kinds of failing images; ``ambiguous``: there is only a renamed file, which may be the image of another name."""

_header_lock = threading.Lock()
_budget = PixelBudget(2 * MAX_PIXELS)
_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class ImageError(Exception):
    """An image that cannot be used.

    Attributes:
        path: The image's path; a description if it is not a file: ``<image of 120 bytes>``.
        kind: One of :data:`FAILURES`.
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


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, reduced_to: int | None = None) -> Image.Image:
    """Open an image as RGB: first frame, EXIF orientation applied, transparency on white.

    Values of more than 8 bits are scaled to 8 bits (see :mod:`mimic_pl.processor.grey_levels`): unsigned ones of up to
    16 bits from their whole range, others from their smallest and largest value. Files whose values cannot be scaled
    (NaN, one value everywhere) or that Pillow cannot read (colour in floats) are unreadable.

    Args:
        source: A file path, the content of a file, a PIL image, or a pixel array: uint8 ``[height, width]``,
            ``[height, width, 3]`` or ``[height, width, 4]``. URLs are treated as paths; a file in object storage is
            given as a :class:`~mimic_pl.remote_path.RemotePath`.
        max_pixels: Larger images are not decoded.
        reduced_to: Decode a JPEG at the smallest of its scales (1/2, 1/4, 1/8) at which no side is shorter than this.

    Raises:
        ImageError: It is missing, unreadable, or oversized: larger than ``max_pixels``, or a JPEG of too many
            scans (see :mod:`mimic_pl.processor.jpeg_scans`).
        DataError: ``source`` has another type.
        StoreError: Object storage cannot be reached, or denies access.
    """
    with opened_image(source, max_pixels, reduced_to) as image:
        return image


@contextmanager
def opened_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, reduced_to: int | None = None
) -> Iterator[Image.Image]:
    """Open an image like :func:`open_image`, to be used where many threads open images.

    While the block has the image in memory, other threads wait if their images would be too large together with it.
    """
    name = _name(source)
    with ExitStack() as stack:
        with _as_image_errors(name):
            opened = _opened(source, name)
            if opened is not source:
                stack.enter_context(opened)
            pixels = opened.width * opened.height
            if not pixels:
                raise ImageError(name, "unreadable", "it has no pixels")
            if pixels > max_pixels:
                raise ImageError(name, "oversized", f"{opened.width} x {opened.height} pixels")
            if isinstance(opened, JpegImageFile) and opened.fp and has_too_many_scans(opened.fp, pixels / max_pixels):
                raise ImageError(name, "oversized", "it has too many scans, each of which takes a pass over all pixels")
            stack.enter_context(_budget.reserved(pixels))
            image = _decoded(opened, reduced_to, keep=opened is source)
        yield image


@contextmanager
def _as_image_errors(name: Path | str) -> Iterator[None]:
    try:
        yield
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
    if isinstance(source, RemotePath):
        return str(source)
    size = f"{len(source)} bytes" if isinstance(source, bytes) else f"type {type(source).__name__}"
    return f"<image of {size}>"


def _opened(source: ImageSource, name: Path | str) -> Image.Image:
    """Open without decoding, and without Pillow's warnings; the caller checks the number of pixels."""
    if isinstance(source, Image.Image):
        if source.format == "EPS":
            raise ImageError(name, "unreadable", "Pillow would decode EPS with Ghostscript; pass image.convert('RGB')")
        return source
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or (source.ndim == 3 and source.shape[2] not in (3, 4))
        ):
            raise DataError(
                f"An image is an array of {source.dtype} {list(source.shape)}; it must be uint8 [height, width] or "
                "[height, width, 3]. Values in [0, 1] are converted by (255 * array).round().astype('uint8')."
            )
        return Image.fromarray(source)
    if isinstance(source, RemotePath):
        _require_size(name, source.size())
        source = source.read_bytes()
    if not isinstance(source, (str, Path, bytes)):
        raise DataError(f"An image is of type {type(source).__name__}. Pass a path, bytes, a PIL image or an array.")
    if not isinstance(source, bytes):
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, "unreadable", "it is a folder or a device, not a file")
        _require_size(name, status.st_size)
    # Warning filters are global, and images are also opened in threads.
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # a line for each damaged tag
        # Only raster formats: Pillow would pass EPS to Ghostscript, regardless of the file name.
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _require_size(name: Path | str, size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(name, "oversized", f"the file has {readable_bytes(size)}")


def _decoded(opened: Image.Image, reduced_to: int | None, keep: bool) -> Image.Image:
    """Decode to RGB; without ``keep``, in place, which saves copies of large images."""
    file_format, tags = opened.format, getattr(opened, "tag_v2", {})
    image = opened
    if keep:
        image = opened.copy()
    else:
        image.seek(0)
        if reduced_to is not None:
            image.draft(None, (reduced_to, reduced_to))  # does nothing for other formats
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        image = to_8_bits(image, file_format, tags)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


class ImageFolder:
    """A folder of images with an image policy.

    Args:
        folder: The folder; if it does not exist, all of its images are missing.
        policy: The image policy; ``error`` is applied here, the others by the callers.
        max_pixels: Larger images count as oversized.
        names: Returns the names of all images of the data set, if its files may be stored under other names (see
            :class:`~mimic_pl.formats.renamed_files.RenamedFiles`); called on first need.
    """

    @in_range(policy=one_of(ImagePolicy), max_pixels=COUNT)
    def __init__(
        self,
        folder: Path,
        policy: ImagePolicy,
        max_pixels: int = MAX_PIXELS,
        names: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self.folder = folder
        self.policy = policy
        self.max_pixels = max_pixels
        self._renamed = None if names is None else RenamedFiles(folder, names)

    def path(self, name: str) -> Path:
        """Path of an image, whether it exists or not."""
        file, other = (None, None) if self._renamed is None else self._renamed.find(name)
        return self.folder / name if file is None or other is not None else file

    def load(self, name: str, load: Callable[[Path], Loaded]) -> Loaded:
        """The result of ``load`` for the path of an image.

        Raises:
            ImageError: The image fails; it is ``ambiguous`` if it is missing, but may be stored under another name.
        """
        try:
            return load(self.path(name))
        except ImageError as error:
            file, other = (None, None) if self._renamed is None else self._renamed.find(name)
            if error.kind != "missing" or file is None or other is None:
                raise
            detail = f"there is no such file, and {file.name} may be its image or that of {other!r}"
            raise ImageError(error.path, "ambiguous", detail) from error

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
                return self.load(name, load), failures
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
            images = "1 image" if len(self.failures) == 1 else f"{len(self.failures)} images"
            _log.warning(
                f"{images} could not be used ({kinds}), for example {examples}. Policy "
                f"{policy!r}: {_OUTCOMES[policy]}. `mimic-pl doctor` lists the problems of a folder."
            )
        self.reported.update(self.failures)
        self.failures.clear()
