"""Wikidata's entity JSON, as in its dumps.

A dump is an array with one entity a line, ``[``, ``{"type": "item", "id": "Q42", "labels": {"en": {"language": "en",
"value": "Douglas Adams"}}, "claims": {"P18": [...]}, ...},``, ``]``; lines that were cut out of it are read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mimic_pl.formats.field_values import valid_unicode
from mimic_pl.formats.plain_layout import ALIASES, joined_aliases
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.row_parser import IMAGE_URL, ImageFiles, RowParser
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, ImageSource

_EVERY_LANGUAGE = "mul"
"""Wikidata's code for labels and aliases that hold in every language."""

_IMAGE, _INSTANCE_OF = "P18", "P31"
_COMMONS = "https://commons.wikimedia.org/wiki/Special:FilePath/"


class WikidataEntities(RowParser[Entity]):
    """Items of Wikidata.

    The name is the label, with the fields ``description``, ``aliases`` (joined by `` | ``), ``type`` (the item that
    this is an instance of, P31), ``types`` (all of these, separated by spaces) and ``image_url`` (of the image P18 on
    Wikimedia Commons). Of several statements, those of the best rank count: the preferred ones, otherwise the normal
    ones. All items have all fields, empty if unknown. Properties are left out, which is logged.

    With a folder of images, the image is a file in it with its name on Commons, if there is one, with spaces or
    underscores.

    Args:
        path: The file, for messages.
        image_files: Completes names of images.
        arrays: Ignored.
        texts: Ignored.
        languages: Languages of label, description and aliases, the first known one is used for each; labels and aliases
            for every language (``mul``) come next, and for a label then the first language that there is. An item
            without a label is named by its id.
        image_folder: Folder of downloaded images, or ``None``.
    """

    about = "id, labels (of Wikidata)"

    def __init__(
        self,
        path: Path | str,
        image_files: ImageFiles,
        arrays: Sequence[str] = (),
        texts: Sequence[str] = (),
        languages: Sequence[str] = ("en",),
        image_folder: Path | None = None,
    ) -> None:
        super().__init__(path, image_files, arrays, texts)
        self.languages = tuple(languages)
        self.image_folder = image_folder

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "id" in row and isinstance(row.get("labels"), dict | list) and "name" not in row

    def parse(self, row: dict[str, Any], ordinal: int) -> Iterator[Entity]:
        """The entity of an item; none for a property."""
        if row.get("type", "item") != "item":
            self.note(f"entities of the type {quoted(row['type'])} are left out")
            return
        own_id = self.entity_id(row, "id")
        labels, languages = _object(row, "labels"), (*self.languages, _EVERY_LANGUAGE)
        name = _value(labels, languages) or _value(labels, labels)
        if not name:
            self.note("items without a label are named by their ids")
        claims = _object(row, "claims")
        types = [item for value in _best(claims, _INSTANCE_OF) if (item := _item(value)) is not None]
        file = next((value for value in _best(claims, _IMAGE) if isinstance(value, str)), None)
        fields = {
            "description": _value(_object(row, "descriptions"), self.languages),
            ALIASES: _aliases(_object(row, "aliases"), languages),
            "type": types[0] if types else "",
            "types": " ".join(types),
            IMAGE_URL: "" if file is None else _COMMONS + quote(file.replace(" ", "_")),
        }
        fields = {key: valid_unicode(value, key) for key, value in fields.items()}
        yield Entity(own_id, valid_unicode(name or own_id, "label"), fields, self._downloaded(file))

    def _downloaded(self, file: str | None) -> tuple[ImageSource, ...]:
        if file is None:
            return ()
        if self.image_folder is None:
            self.note(f"images are on Wikimedia Commons and not fetched; their addresses are in {IMAGE_URL!r}")
            return ()
        for name in (file, file.replace(" ", "_")):
            # A name on Commons has no slash; one that has would lead elsewhere.
            if "/" not in name and (self.image_folder / name).is_file():
                return self.images([name], "image", {})
        self.note(f"images are not in {self.image_folder}")
        return ()


def _object(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of an entity; an empty one is written as an empty list."""
    value = row.get(key) or {}
    if not isinstance(value, dict):
        raise FieldError(f"{key!r} is {quoted(value)}; expected an object, as Wikidata has it.", key)
    return value


def _value(values: Mapping[str, Any], languages: Iterable[str]) -> str:
    for language in languages:
        value = values.get(language)
        if isinstance(value, dict) and isinstance(value.get("value"), str):
            return str(value["value"])
    return ""


def _aliases(values: Mapping[str, Any], languages: Iterable[str]) -> str:
    for language in languages:
        known = values.get(language)
        if isinstance(known, list) and known:
            return joined_aliases(alias["value"] for alias in known if isinstance(alias, dict) and "value" in alias)
    return ""


def _item(value: Any) -> str | None:
    """The id of an item that is the value of a statement; dumps before 2017 have only its number."""
    if not isinstance(value, dict):
        return None
    number = value.get("numeric-id")
    return str(value["id"]) if "id" in value else None if number is None else f"Q{number}"


def _best(claims: Mapping[str, Any], name: str) -> list[Any]:
    """Values of the statements of the best rank."""
    statements = claims.get(name)
    found: dict[str, list[Any]] = {"preferred": [], "normal": []}
    for statement in statements if isinstance(statements, list) else ():
        try:
            snak = statement["mainsnak"]
            if snak.get("snaktype", "value") == "value":
                found[statement.get("rank", "normal")].append(snak["datavalue"]["value"])
        except (KeyError, TypeError, AttributeError):
            continue  # deprecated, or not of Wikidata's form
    return found["preferred"] or found["normal"]
