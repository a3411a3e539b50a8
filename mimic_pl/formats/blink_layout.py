"""The JSON Lines of BLINK and of zeshel, from whose files BLINK's are made.

An entity of BLINK is ``{"text": ..., "idx": "https://en.wikipedia.org/wiki?curid=303", "title": "Alabama"}``, of zeshel
``{"document_id": "000523A4D586C293", "title": "Warner", "text": ...}``. A mention is
``{"context_left": ..., "mention": ..., "context_right": ..., "label_id": ...}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimic_pl.formats.plain_layout import text_fields
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.quoting import quoted
from mimic_pl.records import Entity, Mention

_PAGE = "curid="
"""Before the number of a Wikipedia page in ``idx``."""

_IDS = ("mention_id", "id", "query_id")
"""Fields with the id of a mention: the first that is there."""

_GOLDS = ("label_document_id", "Wikipedia_ID", "wikipedia_id", "label_id")
"""Fields with the gold of a mention: the first that is there."""

_NO_GOLD = ("", "-1", "unknown", "nil")


class BlinkEntities(RowParser[Entity]):
    """Entities of BLINK and zeshel: ``title`` is the name, ``text`` a field.

    The id is ``document_id``, or ``idx``, of a Wikipedia address only the number of the page, as BLINK itself does.
    """

    key = "document_id"
    shown = "title"
    about = "title, text, and idx or document_id"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        known = "document_id" in row or "idx" in row
        return "title" in row and "text" in row and known and "name" not in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Entity]:
        """The entity of a row."""
        if "document_id" in row:
            own_id = self.entity_id(row, "document_id")
        else:
            own_id = self.entity_id(row, "idx").rpartition(_PAGE)[2].strip()
        name = self.text(row, "title")
        without = ["document_id", "idx", "title"]
        if row.get("entity") == name:  # BLINK's entity.jsonl has it twice
            without.append("entity")
        return (Entity(own_id, name, text_fields(self, row, without)),)


class BlinkMentions(RowParser[Mention]):
    """Mentions of BLINK: the sentence is what is left of the mention, the mention, and what is right of it.

    Contexts of whole words, without the space between them and the mention, are joined by one. The gold is
    ``label_document_id``, ``Wikipedia_ID`` or ``label_id``, whichever is there; ``label``, the text of the gold, is
    left out.
    """

    about = "context_left, mention, context_right"

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "context_left" in row and "mention" in row and "context_right" in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Mention]:
        """The mention of a row."""
        word, left, right = (self.text(row, key) for key in ("mention", "context_left", "context_right"))
        if not word:
            raise FieldError("'mention' is empty.", "no mention")
        spaced = left[-1:].isspace()  # the contexts are cut out of a text
        if left and not spaced:
            left += " "
        if right and not right[0].isspace() and not spaced and (left or right[0].isalnum()):
            right = f" {right}"
        id_key = next((key for key in _IDS if row.get(key) is not None), "id")
        return (
            Mention(
                id=str(self.id(row, ordinal, id_key)),
                mention=word,
                sentence=left + word + right,
                golds=_golds(row),
                fields=text_fields(self, row, ("mention", "context_left", "context_right", "label", id_key, *_GOLDS)),
                span=(len(left), len(left) + len(word)),
            ),
        )


def _golds(row: Mapping[str, Any]) -> tuple[str, ...]:
    gold = next((row[key] for key in _GOLDS if row.get(key) is not None), "")
    if isinstance(gold, bool) or not isinstance(gold, str | int):
        raise FieldError(f"the gold is {quoted(gold)}; expected text or an integer.", "gold")
    return () if str(gold).lower() in _NO_GOLD else (str(gold),)
