"""Counts the scans of a JPEG: decoding takes one pass over the whole image for each."""

from __future__ import annotations

import re
from typing import IO

MAX_SCANS = 100
"""Maximum number of scans, the same as in libtiff for JPEGs within TIFF. Encoders write about ten."""

MAX_SCANS_OF_LARGEST = 20
"""Maximum number of scans of an image that has the maximum number of pixels; more for smaller ones."""

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_LARGEST = 1 << 28
"""Bytes searched; within :data:`~mimic_pl.processor.images.MAX_PIXELS`, files are smaller."""

# Within a scan, 0xFF is followed by 0x00 or a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd8\x01]", re.DOTALL)


def has_too_many_scans(file: IO[bytes], size: float) -> bool:
    """Whether a JPEG has too many scans to decode it in reasonable time.

    Args:
        file: The JPEG; its position is kept.
        size: Its number of pixels, as a fraction of the maximum number.
    """
    limit = min(MAX_SCANS, MAX_SCANS_OF_LARGEST / size)
    position = file.tell()
    file.seek(0)
    content = file.read(_LARGEST)
    file.seek(position)
    # Fast, and an upper bound: the marker also occurs in thumbnails and in data after the image.
    return content.count(bytes([0xFF, _START_OF_SCAN])) > limit and _count(content) > limit


def _count(content: bytes) -> int:
    scans, place = 0, 0
    while (marker := _MARKER.search(content, place)) and content[marker.end() - 1] != _END_OF_IMAGE:
        scans += content[marker.end() - 1] == _START_OF_SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans
