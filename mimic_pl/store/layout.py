"""Where the arrays of a safetensors file begin, read from its header and compared with what should be there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mimic_pl.store.manifest import Column

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def offsets_in(path: Path, columns: Mapping[str, Column], rows: int, size: int) -> dict[str, int]:
    """Find the columns in a file without mapping it, as the library's own reader does.

    Args:
        path: The file.
        columns: What it must hold, and nothing else.
        rows: Rows of each column.
        size: Bytes of the file.

    Returns:
        By column the byte where its rows begin.

    Raises:
        ValueError: It holds something else, or its header is damaged.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        # The format: eight bytes with the length of the header, the header as JSON, the data.
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its header is longer than the file")
        try:
            header: Any = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError("its header is no JSON") from error
    start = 8 + length
    found: dict[str, int] = {}
    for name, column in columns.items():
        entry = header.pop(name, None) if isinstance(header, dict) else None
        wanted = {"dtype": _NAMES[column.dtype], "shape": [rows, *column.shape]}
        if not isinstance(entry, dict) or {key: entry.get(key) for key in wanted} != wanted:
            raise ValueError(f"it holds other arrays than the manifest says: {name!r} is {entry}, not {wanted}")
        begin, end = _places(entry)
        if end - begin != rows * column.bytes_per_row or not 0 <= begin <= end <= size - start:
            raise ValueError(f"it holds other arrays than the manifest says: {name!r} lies outside of the file")
        found[name] = start + begin
    return found


def _places(entry: Mapping[str, Any]) -> tuple[int, int]:
    places = entry.get("data_offsets")
    if not isinstance(places, list) or [type(place) for place in places] != [int, int]:
        raise ValueError("its header has no places of its arrays")
    return places[0], places[1]
