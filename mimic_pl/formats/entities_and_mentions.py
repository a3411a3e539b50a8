"""Reads knowledge bases and mentions in any of the layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mimic_pl.formats.entity_lines import has_object_per_line, stream_object_lines
from mimic_pl.formats.hub_dataset import PREFIX, stream_dataset
from mimic_pl.formats.layouts import ENTITY_LAYOUTS, MENTION_LAYOUTS, detected_layout, named_layout
from mimic_pl.formats.located_images import LocatedImages, folder_of_images
from mimic_pl.formats.mimic_layout import MIMICMentions
from mimic_pl.formats.read_records import read_records
from mimic_pl.formats.record_error import RecordError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.formats.wikidata_layout import WikidataEntities
from mimic_pl.records import Entity, Mention

Parsed = TypeVar("Parsed", Entity, Mention)

_KB_IMAGES = ("kb_image", "kb_images")
_MENTION_IMAGES = ("mention_images", "mention_image")


def read_entities(
    path: str | Path,
    format: str | None = None,
    *,
    image_folder: str | Path | None = None,
    arrays: Sequence[str] = (),
    languages: Sequence[str] = ("en",),
) -> Iterator[Entity | RecordError]:
    """Stream the entities of a knowledge base in any of the :mod:`~mimic_pl.formats`.

    Args:
        path: The file, or ``datasets:NAME[/CONFIGURATION][:SPLIT]``.
        format: Name of its layout; by default it is recognised by the keys of the first record.
        image_folder: Folder of images with relative paths; by default that of the file, for MIMIC's layout ``kb_image``
            beside it if there is one.
        arrays: Fields with lists of numbers, which become the entities' arrays.
        languages: Languages of Wikidata's labels, descriptions and aliases; the first that is known is used.

    Yields:
        Each entity, with absolute paths of images; in place of a record that cannot be used, an error with its place.
        Two entities may have one id.

    Raises:
        DataError: The file cannot be read, but only after the records before the error; or its layout is not known.
        ConfigError: There is no format of this name.
    """
    wikidata = {"languages": languages, "image_folder": None if image_folder is None else Path(image_folder)}
    yield from _read(path, format, ENTITY_LAYOUTS, image_folder, _KB_IMAGES, arrays, wikidata)


def read_mentions(
    path: str | Path,
    format: str | None = None,
    *,
    image_folder: str | Path | None = None,
    arrays: Sequence[str] = (),
) -> Iterator[Mention | RecordError]:
    """Stream the mentions of a file in any of the :mod:`~mimic_pl.formats`.

    Args:
        path: The file, or ``datasets:NAME[/CONFIGURATION][:SPLIT]``.
        format: Name of its layout; by default it is recognised by the keys of the first record.
        image_folder: Folder of images with relative paths; by default that of the file, for MIMIC's layout
            ``mention_images`` beside it if there is one.
        arrays: Fields with lists of numbers, which become the mentions' arrays.

    Yields:
        Each mention, with the absolute path of its image; in place of a record that cannot be used, an error with its
        place.

    Raises:
        DataError: The file cannot be read, but only after the records before the error; or its layout is not known.
        ConfigError: There is no format of this name.
    """
    yield from _read(path, format, MENTION_LAYOUTS, image_folder, _MENTION_IMAGES, arrays, {})


def _read(
    source: str | Path,
    name: str | None,
    layouts: Mapping[str, type[RowParser[Parsed]]],
    image_folder: str | Path | None,
    usual_folders: tuple[str, ...],
    arrays: Sequence[str],
    wikidata: Mapping[str, Any],
) -> Iterator[Parsed | RecordError]:
    layout = None if name is None else named_layout(name, layouts)
    path = Path(source)
    if str(source).startswith(PREFIX):
        rows, path = stream_dataset(str(source)), Path()
    else:
        # The keys of an object of records become their ids, whatever the layout calls them.
        rows = read_records(path, None, layout.key if layout is not None else "id")
    if layout is None:
        layout, rows = detected_layout(source, rows, layouts)
    options: Mapping[str, Any] = {}
    if issubclass(layout, WikidataEntities):
        options = wikidata
        if has_object_per_line(path):
            rows = stream_object_lines(path)  # faster, and damaged lines leave the others readable
    if image_folder is None:
        image_folder = folder_of_images(path, usual_folders if layout is layouts["mimic"] else ())
    images = LocatedImages(Path(image_folder), renamed=issubclass(layout, MIMICMentions))
    parser = layout(source, images, arrays, **options)
    yield from parser.records(rows)
