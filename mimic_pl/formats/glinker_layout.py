"""GLiNKER's dictionaries of entities, in JSON Lines.

``{"entity_id": "Q123", "label": "Kyiv", "aliases": ["Kiev"], "description": ..., "entity_type": "city"}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimic_pl.formats.plain_layout import ALIASES, text_fields
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.records import Entity


class GlinkerEntities(RowParser[Entity]):
    """Entities of GLiNKER: ``label`` is the name; ``entity_type`` becomes the field ``type``.

    Aliases, description and type are optional there; here they are empty then, so that all entities have them.
    """

    key = "entity_id"
    shown = "entity_id"
    about = "entity_id, label"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "entity_id" in row and "label" in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Entity]:
        """The entity of a row."""
        fields = {"description": "", ALIASES: "", "type": ""}
        fields |= text_fields(self, row, ("entity_id", "label"), {"entity_type": "type"})
        return (Entity(self.entity_id(row, "entity_id"), self.text(row, "label"), fields),)
