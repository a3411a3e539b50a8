"""Row format of an entity index on disk: records and states as Arrow columns, with checksums."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from mimic_pl.errors import DataError
from mimic_pl.files import checksum_of
from mimic_pl.quoting import listed, quoted
from mimic_pl.ranking.text_columns import column_of, field_of
from mimic_pl.records import Entity

INDEX = "entity index"
"""Name in error messages."""

ORDER = "#order"
"""Column of order numbers. Columns of the index itself start with ``#``, so that no text field has their names."""

IMAGES = "#images"
"""Column of image files."""

RECORD_CHECKSUM = "#record_crc32"
"""Column with the checksum of an entity's record."""

STATES = "#states"
"""Column with the bytes of an entity's states: Lance reads each column of each row by a request of its own."""

STATE_CHECKSUM = "#state_crc32"
"""Column with the checksum of an entity's order number and states."""

METADATA = "mimic_pl"
"""Key of the index's description in the schema metadata of the dataset."""

VERSION = 3
"""Version of the row format."""

_FORMAT = "mimic_pl entity index"

_DIGEST = re.compile("[0-9a-f]{32,}")
"""A value of a description that tells a reader nothing."""

_ALIGNMENT = 8
"""An entity's states take a multiple of so many bytes, the size of the largest dtype: all values are aligned."""

Decode = Callable[[pa.Table], tuple[Any, list[int]]]
"""Decodes rows, and says which of them have another checksum."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}


class OtherVersion(Exception):
    """An index has rows of another version of the format."""


class StateColumn(NamedTuple):
    """A column of states as an index has it in memory; on disk, an entity's columns are one after the other.

    Attributes:
        dtype: Dtype of its values.
        shape: Shape of one entity's value.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of one entity's value."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RowFormat:
    """The columns of an index on disk, and what the index was built from.

    A row has two checksums, one for the record and one for the states, which are read separately. Both cover the order
    number; that of the states also covers the names, dtypes and shapes of their columns.

    Attributes:
        columns: The state columns by name.
        description: What the index was built from, plain JSON values by name.
        fields: Names of the entities' text fields. Each has a column of its own, null where an entity lacks it.
    """

    columns: Mapping[str, StateColumn]
    description: Mapping[str, Any]
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Tensor], description: Mapping[str, Any], fields: Iterable[str] = ()) -> RowFormat:
        """Format for storing these columns, each ``[entities, ...]``, and these text fields."""
        stored = {name: StateColumn(t.dtype, tuple(t.shape[1:])) for name, t in columns.items()}
        return cls(stored, dict(description), tuple(fields))

    @classmethod
    def loads(cls, text: str | bytes, names: Iterable[str]) -> RowFormat:
        """Parse the output of :meth:`dumps`.

        Args:
            text: The output.
            names: Names of the dataset's columns.

        Raises:
            ValueError: The text is damaged or of another format.
            OtherVersion: The rows are of another version of the format.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError("it has another format")
        if content.pop("crc32", None) != checksum_of(json.dumps(content, sort_keys=True).encode()):
            raise ValueError("its description fails its checksum")
        if content.get("version") != VERSION:
            raise OtherVersion(content.get("version"))
        columns = {
            name: StateColumn(_DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in content["columns"].items()
        }
        return cls(columns, content["description"], tuple(f for name in names if (f := field_of(name)) is not None))

    def dumps(self) -> str:
        """The format as JSON."""
        content = {
            "format": _FORMAT,
            "version": VERSION,
            "description": dict(self.description),
            "columns": self._columns_as_json(),
        }
        return json.dumps({**content, "crc32": checksum_of(json.dumps(content, sort_keys=True).encode())})

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of an entity's states."""
        return sum(column.bytes for column in self.columns.values())

    @property
    def record_columns(self) -> list[str]:
        """Columns of an entity's record and their checksum."""
        return ["id", ORDER, "name", IMAGES, RECORD_CHECKSUM, *map(column_of, self.fields)]

    @property
    def state_columns(self) -> list[str]:
        """Columns of an entity's states and their checksum."""
        return [ORDER, *([STATES] if self.columns else []), STATE_CHECKSUM]

    @property
    def schema(self) -> pa.Schema:
        """Schema of a dataset, including the description."""
        fields = [
            pa.field("id", pa.string()),
            pa.field(ORDER, pa.int64()),
            pa.field("name", pa.string()),
            pa.field(IMAGES, pa.list_(pa.string())),
            pa.field(RECORD_CHECKSUM, pa.uint32()),
            *([pa.field(STATES, pa.list_(pa.uint8(), self._width))] if self.columns else []),
            pa.field(STATE_CHECKSUM, pa.uint32()),
            *(pa.field(column_of(field), pa.string()) for field in self.fields),
        ]
        return pa.schema(fields, {METADATA: self.dumps()})

    def table(self, entities: Sequence[Entity], order: Tensor, columns: Mapping[str, Tensor]) -> pa.Table:
        """Build rows for writing. Images that are no files cannot be stored: their states are all that is kept of them.

        Args:
            entities: Records.
            order: Order numbers, int64 ``[n]``.
            columns: State columns, ``[n, ...]``.

        Raises:
            DataError: A record contains a text that is not valid Unicode.
            ValueError: A record has a text field without a column.
        """
        if missing := {field for entity in entities for field in entity.fields} - {*self.fields}:
            raise ValueError(f"no columns for the text fields {listed(sorted(missing))}")
        order, states = order.cpu(), self._packed(columns, len(entities))
        images = [_files(entity) for entity in entities]
        records = zip(entities, order.tolist(), images, strict=True)
        try:
            arrays = [
                pa.array([entity.id for entity in entities], pa.string()),
                pa.array(order.numpy()),
                pa.array([entity.name for entity in entities], pa.string()),
                pa.array(images, pa.list_(pa.string())),
                pa.array([_record_checksum(e.id, n, e.name, e.fields, i) for e, n, i in records], pa.uint32()),
                *([_to_arrow(states)] if self.columns else []),
                pa.array(self._state_checksums(order, states), pa.uint32()),
                *(pa.array([entity.fields.get(field) for entity in entities], pa.string()) for field in self.fields),
            ]
        except UnicodeEncodeError as error:
            raise DataError(
                f"The text {quoted(error.object)} of an entity contains {quoted(error.object[error.start])}, half of a "
                "character, which cannot be stored. Remove it from the record."
            ) from error
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def states(self, table: pa.Table) -> tuple[dict[str, Tensor], list[int]]:
        """Columns of the states of rows, each ``[n, ...]``, which share memory; also returns the damaged rows."""
        states = _to_torch(table.column(STATES)) if self.columns else torch.empty((len(table), 0), dtype=torch.uint8)
        order = torch.tensor(table.column(ORDER).to_numpy())
        places = self._places()
        columns = {
            name: states[:, places[name]].view(column.dtype).reshape(len(table), *column.shape)
            for name, column in self.columns.items()
        }
        return columns, _differences(self._state_checksums(order, states), table.column(STATE_CHECKSUM))

    def entities(self, table: pa.Table) -> tuple[list[Entity], list[int]]:
        """Decode the records of rows; also returns the damaged rows, whose records are not to be trusted."""
        texts = [table.column(column_of(field)).to_pylist() for field in self.fields]
        rows = [
            {field: text for field, text in zip(self.fields, row, strict=True) if text is not None}
            for row in (zip(*texts, strict=True) if texts else ((),) * len(table))
        ]
        ids, order, names, images = (table.column(name).to_pylist() for name in ("id", ORDER, "name", IMAGES))
        records = list(zip(ids, order, names, rows, (files or [] for files in images), strict=True))
        damaged = _differences([_record_checksum(*record) for record in records], table.column(RECORD_CHECKSUM))
        return [Entity(id, name, fields, tuple(files)) for id, _, name, fields, files in records], damaged

    @property
    def _width(self) -> int:
        return -(-self.bytes_per_entity // _ALIGNMENT) * _ALIGNMENT

    def _places(self) -> dict[str, slice]:
        """Each column's part of an entity's bytes: wide dtypes come first, so that all are aligned."""
        places, start = {}, 0
        for name, column in sorted(self.columns.items(), key=lambda item: -item[1].dtype.itemsize):
            places[name] = slice(start, start + column.bytes)
            start += column.bytes
        return places

    def _packed(self, columns: Mapping[str, Tensor], rows: int) -> Tensor:
        """The bytes of each row's states, uint8 ``[rows, bytes]``."""
        packed = torch.zeros((rows, self._width), dtype=torch.uint8)
        for name, place in self._places().items():
            packed[:, place] = _bytes(columns[name].detach().cpu()).view(rows, place.stop - place.start)
        return packed

    def _state_checksums(self, order: Tensor, states: Tensor) -> list[int]:
        # Seeded with names and dtypes, so that equal bytes in other columns are detected.
        seed = zlib.crc32(json.dumps(self._columns_as_json()).encode())
        numbers, content = (memoryview(_bytes(tensor).numpy().data) for tensor in (order, states))
        width = states.shape[1]
        return [
            zlib.crc32(content[row * width : (row + 1) * width], zlib.crc32(numbers[row * 8 : row * 8 + 8], seed))
            for row in range(len(order))
        ]

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


def _files(entity: Entity) -> list[str]:
    """The images of an entity that are files."""
    return [str(image) for image in entity.images if isinstance(image, (str, Path))]


def _record_checksum(id: str, order: int, name: str, fields: Mapping[str, str], images: Sequence[str]) -> int:
    return zlib.crc32(json.dumps([id, order, name, fields, images], sort_keys=True).encode())


def _differences(checksums: Sequence[int], stored: pa.ChunkedArray) -> list[int]:
    pairs = enumerate(zip(checksums, stored.to_pylist(), strict=True))
    return [row for row, (computed, written) in pairs if computed != written]


def _to_arrow(states: Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1).numpy()), states.shape[1])


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 ``[bytes]``."""
    return tensor.contiguous().view(torch.uint8).reshape(-1)


def _to_torch(array: pa.ChunkedArray) -> Tensor:
    """Rows of bytes, uint8 ``[n, bytes]``, that share the array's memory unless values would not be aligned in it."""
    whole = array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks)
    flat = torch.utils.dlpack.from_dlpack(whole.flatten())
    aligned = flat if flat.data_ptr() % _ALIGNMENT == 0 else flat.clone()
    return aligned.reshape(len(whole), array.type.list_size)
