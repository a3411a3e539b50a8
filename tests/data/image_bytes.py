"""Image files built byte by byte, independently of Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG of unsigned values ``[height, width]`` or ``[height, width, channels]``, of 8 or 16 bits."""
    height, width = values.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values[0, 0].size]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.dtype.itemsize, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    chunks = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(values: np.ndarray, order: str = "<", photometric: int = 1, next_page: int = 0) -> bytes:
    """An uncompressed grey TIFF of values ``[height, width]`` of any number type.

    Args:
        values: The values.
        order: Byte order: ``<`` or ``>``.
        photometric: 0 if white is zero, 1 if black is.
        next_page: Offset of the next page; 8 is that of the page itself.
    """
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    formats = {"u": 1, "i": 2, "f": 3}
    entries = [
        *((256, width), (257, height), (258, 8 * values.dtype.itemsize), (259, 1), (262, photometric)),
        *((273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height), (279, len(data)), (339, formats[values.dtype.kind])),
    ]
    page = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return start + struct.pack(order + "H", len(entries)) + page + struct.pack(order + "I", next_page) + data


def gif(screen: tuple[int, int], frame: tuple[int, int], count: int = 1) -> bytes:
    """A black GIF of equal frames, which may be larger than its screen."""
    buffer = io.BytesIO()
    Image.new("P", frame).save(buffer, "GIF")
    whole = buffer.getvalue()
    descriptor = whole[whole.index(b",\0\0\0\0") : -1]
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + descriptor * count + b";"


def jpeg(side: int = 32, **options) -> bytes:
    """A square JPEG of noise."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated until it has a number of scans."""
    whole = jpeg(progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (count - whole.count(b"\xff\xda")) + whole[-2:]
