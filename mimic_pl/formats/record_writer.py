"""Writes entities and mentions: as plain records, or in MIMIC's layout."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mimic_pl.errors import ConfigError
from mimic_pl.formats.link_records import mention_record
from mimic_pl.formats.part_file import PartFile, Records, Render
from mimic_pl.formats.row_parser import NIL
from mimic_pl.records import Entity, ImageSource, Mention

_TEXTS = ("attr", "desc", "description", "text")
"""Fields of an entity that may serve as ``attr`` in MIMIC's layout; the first that is not empty."""

_MIMIC_FOLDERS = {"image_list": "kb_image", "imgPath": "mention_images"}
"""Folders of images in MIMIC's layout, by the keys of the images."""

_ROWS = 4096


class RecordWriter(PartFile):
    """Writes entities or mentions to a file, which appears complete at the end of the ``with`` block, or not at all.

    Args:
        target: The file.
        render: Writes them in its format.
        as_record: A record in the layout of the file, without images; its number is the first argument.
        images: The key of the images.

    Attributes:
        images_left_out: Number of images that are not files, and so cannot be written.
    """

    def __init__(
        self, target: Path, render: Render | None, as_record: Callable[[int, Any], dict[str, Any]], images: str
    ) -> None:
        super().__init__(target, render)
        self._as_record, self._images = as_record, images
        self.images_left_out = 0

    def write(self, record: Entity | Mention) -> None:
        """Write a record.

        Raises:
            MachineError: The disk is full.
        """
        row = self._as_record(self.written, record)
        images = record.images if isinstance(record, Entity) else () if record.image is None else (record.image,)
        names = [name for image in images if (name := self._name(image)) is not None]
        self.images_left_out += len(images) - len(names)
        if names:
            row[self._images] = names if isinstance(record, Entity) else names[0]
        arrays = {name: array.tolist() if hasattr(array, "tolist") else array for name, array in record.arrays.items()}
        if arrays and self._images in _MIMIC_FOLDERS:
            row |= arrays
        elif arrays:
            row["arrays"] = arrays
        self.append(row)

    def _name(self, image: ImageSource) -> str | None:
        """An image's path from the folder of the file, if it is in there; otherwise its absolute path."""
        if not isinstance(image, str | Path):
            return None
        path = os.path.abspath(image)
        folder = os.path.abspath(self.target.parent)
        folder = os.path.join(folder, _MIMIC_FOLDERS.get(self._images, ""))
        return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


def open_record_writer(path: str | Path, kind: type[Entity] | type[Mention], layout: str = "plain") -> RecordWriter:
    """Open a file for entities or mentions.

    Args:
        path: The file; the suffix of its name says the format: ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``.
        kind: What is written.
        layout: ``plain``, or ``mimic``.

    Raises:
        ConfigError: The file's name says no format, or there is no such layout.
        MachineError: The folder is not writable.
        StoreError: Another process is writing the same file.
    """
    path = Path(path)
    if layout not in ("plain", "mimic"):
        raise ConfigError(f"Records cannot be written in the layout {layout!r}. Choose plain or mimic.")
    layouts: dict[tuple[type, str], tuple[Callable[[int, Any], dict[str, Any]], str]] = {
        (Entity, "plain"): (_plain_entity, "images"),
        (Entity, "mimic"): (_mimic_entity, "image_list"),
        (Mention, "plain"): (_plain_mention, "image"),
        (Mention, "mimic"): (_mimic_mention, "imgPath"),
    }
    return RecordWriter(path, _render(path), *layouts[kind, layout])


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows of any kind, such as those of an :class:`~mimic_pl.formats.EntitiesByName`.

    Args:
        path: The file; see :func:`open_record_writer`.
        rows: Dictionaries of plain JSON values.

    Returns:
        The number of rows.

    Raises:
        ConfigError: The file's name says no format.
        MachineError: The disk is full, or the folder is not writable.
    """
    path = Path(path)
    with PartFile(path, _render(path)) as part:
        for row in rows:
            part.append(row)
    return part.written


def _render(path: Path) -> Render | None:
    if path.suffix.lower() not in _RENDERS:
        known = ", ".join(_RENDERS)
        raise ConfigError(f"The name {path} does not say in which format to write records. Give it one of {known}.")
    return _RENDERS[path.suffix.lower()]


def _plain_entity(number: int, entity: Entity) -> dict[str, Any]:
    return {"id": entity.id, "name": entity.name, **entity.fields}


def _mimic_entity(number: int, entity: Entity) -> dict[str, Any]:
    attr = next((text for key in _TEXTS if (text := entity.fields.get(key))), "")
    own = {"id": number, "qid": entity.id, "entity_name": _percent_encoded(entity.name), "attr": attr}
    return {**own, "image_list": [], **{key: text for key, text in entity.fields.items() if key not in own}}


def _plain_mention(number: int, mention: Mention) -> dict[str, Any]:
    record = mention_record(mention)
    record.pop("image", None)
    return record | record.pop("fields", {})


def _mimic_mention(number: int, mention: Mention) -> dict[str, Any]:
    golds = list(mention.golds)
    own: dict[str, Any] = {
        "id": mention.id or str(number),
        "sentence": mention.sentence,
        "mentions": _percent_encoded(mention.mention),
        "answer": golds if len(golds) > 1 else golds[0] if golds else NIL,
        "imgPath": "",
    }
    return {**own, **{key: text for key, text in mention.fields.items() if key not in own}}


def _percent_encoded(name: str) -> str:
    return name.replace("%", "%25")


def _write_json(records: Records, path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        number = -1
        for number, row in enumerate(records()):
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n" if number >= 0 else "[]\n")


def _write_csv(records: Records, path: Path) -> None:
    """A column for every key that occurs; lists as JSON."""
    columns = dict.fromkeys(key for row in records() for key in row)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for row in records():
            table.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_parquet(records: Records, path: Path) -> None:
    """A column for every key that occurs, of the type of all its values."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([])
    for batch in _batches(records()):
        found = pyarrow.Table.from_pylist(batch, _all_keys(batch)).schema
        schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
    with ParquetWriter(path, schema) as writer:
        for batch in _batches(records()):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _all_keys(batch: list[dict[str, Any]]) -> Any:
    """The schema of a batch; pyarrow itself would look at its first record only."""
    import pyarrow

    columns = dict.fromkeys(key for row in batch for key in row)
    return pyarrow.schema({key: pyarrow.array([row.get(key) for row in batch]).type for key in columns})


def _batches(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(records, _ROWS)):
        yield batch


_RENDERS: dict[str, Render | None] = {
    ".jsonl": None,
    ".ndjson": None,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
