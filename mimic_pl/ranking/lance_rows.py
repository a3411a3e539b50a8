"""Row format of an entity index on disk: records and states as Arrow columns, with checksums."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from mimic_pl.files import checksum_of
from mimic_pl.records import Entity

INDEX = "entity index"
"""Name in error messages."""

RECORD_COLUMNS = ("id", "order", "name", "fields", "images", "record_crc32")
"""Columns of an entity's record; the last is the checksum of the others."""

STATE_CHECKSUM = "state_crc32"
"""Column with the checksum of an entity's order number and state columns."""

METADATA = "mimic_pl"
"""Key of the index's description in the schema metadata of the dataset."""

_VERSION = 1
_FORMAT = "mimic_pl entity index"

_DIGEST = re.compile("[0-9a-f]{32,}")
"""A value of a description that tells a reader nothing."""

_ROWS_AT_ONCE = 512
"""Rows whose bytes are concatenated for checksums: at published sizes some megabytes, which stay in the cache."""

# Arrow has no bfloat16, and Lance's type for it is not a plain number, so the bits are stored.
_BITS: dict[torch.dtype, tuple[torch.dtype, pa.DataType]] = {
    torch.bool: (torch.uint8, pa.uint8()),
    torch.uint8: (torch.uint8, pa.uint8()),
    torch.int8: (torch.int8, pa.int8()),
    torch.int16: (torch.int16, pa.int16()),
    torch.int32: (torch.int32, pa.int32()),
    torch.int64: (torch.int64, pa.int64()),
    torch.float16: (torch.uint16, pa.uint16()),
    torch.bfloat16: (torch.uint16, pa.uint16()),
    torch.float32: (torch.float32, pa.float32()),
    torch.float64: (torch.float64, pa.float64()),
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _BITS}


class StateColumn(NamedTuple):
    """A column of states.

    Attributes:
        dtype: Dtype of its values.
        shape: Shape of one entity's value.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RowFormat:
    """The columns of an index on disk, and what the index was built from.

    A row has two checksums, one for the record and one for the states, which are read separately. Both cover the order
    number; that of the states also covers the names and dtypes of their columns.

    Attributes:
        columns: The state columns by name.
        description: What the index was built from, plain JSON values by name.
    """

    columns: Mapping[str, StateColumn]
    description: Mapping[str, Any]

    @classmethod
    def of(cls, columns: Mapping[str, Tensor], description: Mapping[str, Any]) -> RowFormat:
        """Format for storing these columns, each ``[entities, ...]``."""
        return cls({name: StateColumn(t.dtype, tuple(t.shape[1:])) for name, t in columns.items()}, dict(description))

    @classmethod
    def loads(cls, text: str | bytes) -> RowFormat:
        """Parse the output of :meth:`dumps`.

        Raises:
            ValueError: The text is damaged or of another format.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
            raise ValueError("it has another format or version")
        if content.pop("crc32", None) != checksum_of(json.dumps(content, sort_keys=True).encode()):
            raise ValueError("its description fails its checksum")
        columns = {
            name: StateColumn(_DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in content["columns"].items()
        }
        return cls(columns, content["description"])

    def dumps(self) -> str:
        """The format as JSON."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "description": dict(self.description),
            "columns": self._columns_as_json(),
        }
        return json.dumps({**content, "crc32": checksum_of(json.dumps(content, sort_keys=True).encode())})

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of an entity's states."""
        return sum(math.prod(column.shape) * column.dtype.itemsize for column in self.columns.values())

    @property
    def schema(self) -> pa.Schema:
        """Schema of the dataset, including the description."""
        fields = [
            pa.field("id", pa.string()),
            pa.field("order", pa.int64()),
            pa.field("name", pa.string()),
            pa.field("fields", pa.string()),
            pa.field("images", pa.list_(pa.string())),
            pa.field("record_crc32", pa.uint32()),
            *(pa.field(name, _arrow_type(column)) for name, column in self.columns.items()),
            pa.field(STATE_CHECKSUM, pa.uint32()),
        ]
        return pa.schema(fields, {METADATA: self.dumps()})

    def table(self, entities: Sequence[Entity], order: Tensor, columns: Mapping[str, Tensor]) -> pa.Table:
        """Build rows for writing.

        Args:
            entities: Records.
            order: Order numbers, int64 ``[n]``.
            columns: State columns, ``[n, ...]``.
        """
        columns = {name: columns[name].detach().cpu().contiguous() for name in self.columns}
        order = order.cpu()
        fields = [json.dumps(entity.fields, ensure_ascii=False) for entity in entities]
        records = zip(entities, order.tolist(), fields, strict=True)
        arrays = [
            pa.array([entity.id for entity in entities], pa.string()),
            pa.array(order.numpy()),
            pa.array([entity.name for entity in entities], pa.string()),
            pa.array(fields, pa.string()),
            pa.array([list(entity.image_files) for entity in entities], pa.list_(pa.string())),
            pa.array([_record_checksum(e.id, n, e.name, f, e.image_files) for e, n, f in records], pa.uint32()),
            *(_to_arrow(columns[name], column) for name, column in self.columns.items()),
            pa.array(self._state_checksums(order, columns), pa.uint32()),
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def states(self, table: pa.Table) -> tuple[dict[str, Tensor], int | None]:
        """Decode the state columns of rows, each ``[n, ...]``; also returns the first damaged row, if any."""
        columns = {name: _to_torch(table.column(name), column) for name, column in self.columns.items()}
        order = _to_torch(table.column("order"), StateColumn(torch.int64, ()))
        return columns, _first_difference(self._state_checksums(order, columns), table.column(STATE_CHECKSUM))

    def entities(self, table: pa.Table) -> tuple[list[Entity], int | None]:
        """Decode the records of rows; also returns the first damaged row, if any."""
        rows = list(zip(*(table.column(name).to_pylist() for name in RECORD_COLUMNS[:-1]), strict=True))
        damaged = _first_difference([_record_checksum(*row) for row in rows], table.column("record_crc32"))
        if damaged is not None:
            return [], damaged
        return [Entity(id, name, json.loads(fields), tuple(images)) for id, _, name, fields, images in rows], None

    def _state_checksums(self, order: Tensor, columns: Mapping[str, Tensor]) -> list[int]:
        # Seeded with names and dtypes, so that equal bytes in other columns are detected.
        seed = zlib.crc32(json.dumps(self._columns_as_json()).encode())
        parts = [_rows_of_bytes(order), *(_rows_of_bytes(columns[name]) for name in self.columns)]
        width = sum(part.shape[1] for part in parts)
        checksums: list[int] = []
        for start in range(0, len(order), _ROWS_AT_ONCE):
            rows = torch.cat([part[start : start + _ROWS_AT_ONCE] for part in parts], dim=1)
            content = memoryview(rows.numpy().reshape(-1).data)
            checksums += [zlib.crc32(content[at : at + width], seed) for at in range(0, rows.numel(), width)]
        return checksums

    def _columns_as_json(self) -> dict[str, Any]:
        return {
            name: [str(column.dtype).removeprefix("torch."), list(column.shape)]
            for name, column in self.columns.items()
        }


def differences(description: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Describe the expected values that differ from a description; empty if none does."""
    found = []
    for key, value in expected.items():
        before = description.get(key)
        if key not in description or before != value:
            readable = key in description and not _DIGEST.fullmatch(str(value))
            found.append(f"another {key}" + (f" ({before!r}, now {value!r})" if readable else ""))
    return " and ".join(found)


def _record_checksum(id: str, order: int, name: str, fields: str, images: Sequence[str]) -> int:
    return zlib.crc32(json.dumps([id, order, name, fields, list(images)]).encode())


def _first_difference(checksums: Sequence[int], stored: pa.ChunkedArray) -> int | None:
    pairs = enumerate(zip(checksums, stored.to_pylist(), strict=True))
    return next((row for row, (computed, written) in pairs if computed != written), None)


def _arrow_type(column: StateColumn) -> pa.DataType:
    number = _BITS[column.dtype][1]
    return pa.list_(number, math.prod(column.shape)) if column.shape else number


def _to_arrow(tensor: Tensor, column: StateColumn) -> pa.Array:
    bits, number = _BITS[column.dtype]
    flat = pa.array(tensor.reshape(-1).view(bits).numpy(), number)
    return pa.FixedSizeListArray.from_arrays(flat, type=_arrow_type(column)) if column.shape else flat


def _to_torch(array: pa.ChunkedArray, column: StateColumn) -> Tensor:
    """Rows as a tensor ``[n, *shape]`` that shares the array's memory."""
    whole = array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks)
    flat = torch.utils.dlpack.from_dlpack(whole.flatten() if column.shape else whole)
    return flat.view(column.dtype).reshape(len(whole), *column.shape)


def _rows_of_bytes(tensor: Tensor) -> Tensor:
    """Bytes of each row, uint8 ``[n, bytes]``."""
    width = tensor[:0].numel() if not len(tensor) else tensor[0].numel()
    return tensor.contiguous().reshape(-1).view(torch.uint8).reshape(len(tensor), width * tensor.element_size())
