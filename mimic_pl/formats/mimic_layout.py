"""MIMIC's published layout, which M3EL and MMoE extend with ``desc``.

An entity is ``{"id": 0, "qid": "Q42", "entity_name": "Douglas Adams", "attr": "Sex: male.", "image_list": ["0.jpg"]}``,
a mention ``{"id": "7-0", "mentions": "Adams", "sentence": "Adams wrote.", "answer": "Q42", "imgPath": "7.jpg"}``. Names
and mentions are percent-encoded; every other text is a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from mimic_pl.formats.field_values import as_list, valid_unicode
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, Mention


class MIMICEntities(RowParser[Entity]):
    """Entities of the published layout.

    Attributes:
        own_id: ``id`` of the latest entity, which the published code orders the knowledge base by; its position in the
            file if it has none.
    """

    key = "qid"
    about = "qid, entity_name"
    own_id: int | str

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "qid" in row and "entity_name" in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Entity]:
        """The entity of a row."""
        images = as_list(row.get("image_list"))
        if images is None or isinstance(images, str):
            images = [images]
        if not isinstance(images, list):
            raise FieldError(f"'image_list' is {quoted(images)}; expected a list of file names.", "image_list")
        fields = _text_fields(self, row, without=("id", "qid", "entity_name", "image_list"))
        entity = Entity(
            id=self.identifier(row, "qid"),
            name=unquote(self.text(row, "entity_name")),
            fields=fields,
            images=self.images(images, "entity_image_folder", fields),
            arrays={name: self.array(row, name) for name in self.arrays},
        )
        self.own_id = self.id(row, ordinal)
        return (entity,)


class MIMICMentions(RowParser[Mention]):
    """Mentions of the published layout."""

    about = "mentions, sentence"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "mentions" in row and "sentence" in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Mention]:
        """The mention of a row."""
        image = as_list(row.get("imgPath"))
        if isinstance(image, list) and len(image) < 2:
            image = image[0] if image else None
        fields = _text_fields(self, row, without=("id", "mentions", "sentence", "answer", "imgPath"))
        mention = Mention(
            id=str(self.id(row, ordinal)),
            mention=unquote(self.text(row, "mentions")),
            sentence=self.text(row, "sentence"),
            golds=self.golds(row.get("answer"), "answer"),
            image=next(iter(self.images([image], "mention_image_folder", fields)), None),
            fields=fields,
            arrays={name: self.array(row, name) for name in self.arrays},
        )
        return (mention,)


def _text_fields(
    parser: MIMICEntities | MIMICMentions, row: Mapping[str, Any], without: tuple[str, ...]
) -> dict[str, str]:
    """Every other text, for the template; null becomes empty text."""
    fields = {}
    for key, value in row.items():
        if key in without or key in parser.arrays:
            continue
        if value is None:
            value = ""
        elif not isinstance(value, str):
            if key not in parser.texts:
                continue
            value = parser.as_text(value, key)
        fields[valid_unicode(key, "the name of a field")] = valid_unicode(value, key)
    return fields
