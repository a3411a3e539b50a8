"""zeshel's mentions, which are places in the documents of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mimic_pl.errors import DataError
from mimic_pl.formats.record_error import FieldError
from mimic_pl.formats.row_parser import ImageFiles, RowParser
from mimic_pl.formats.source import open_text
from mimic_pl.quoting import quoted
from mimic_pl.records import Mention

_AROUND = 128
"""Words of a document on either side of a mention, as in BLINK."""


class ZeshelMentions(RowParser[Mention]):
    """Mentions of zeshel: words from ``start_index`` to ``end_index`` (inclusive) of a document.

    The document is in ``documents/{corpus}.json`` beside the folder of the mentions' file; only the places of documents
    in their files are kept in memory. The sentence is the mention with the 128 words before and after it; ``corpus``
    and ``category`` are fields.

    Args:
        path: The file of mentions.
        image_files: Ignored: there are no images.
    """

    shown = "mention_id"
    about = "mention_id, context_document_id, start_index, end_index"

    def __init__(self, path: Path | str, image_files: ImageFiles, *args: Any) -> None:
        super().__init__(path, image_files, *args)
        self._folder = Path(path).absolute().parent.parent / "documents"
        self._places = lru_cache(maxsize=None)(self._read_places)

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout."""
        return "context_document_id" in row and "start_index" in row and "end_index" in row

    def parse(self, row: dict[str, Any], ordinal: int) -> tuple[Mention]:
        """The mention of a row."""
        words = self._document(self.text(row, "corpus"), self.text(row, "context_document_id"))
        start, end = row.get("start_index"), row.get("end_index")
        if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start <= end < len(words):
            raise FieldError(
                f"the place {quoted(start)} to {quoted(end)} is not in the document of {len(words)} words.", "place"
            )
        word = " ".join(words[start : end + 1])
        if row.get("text") not in (None, word):
            raise FieldError(f"'text' is {quoted(row['text'])}, but its place has {quoted(word)}.", "another text")
        before = "".join(f"{left} " for left in words[max(0, start - _AROUND) : start])
        after = "".join(f" {right}" for right in words[end + 1 : end + 1 + _AROUND])
        gold = row.get("label_document_id")
        return (
            Mention(
                id=str(self.id(row, ordinal, "mention_id")),
                mention=word,
                sentence=before + word + after,
                golds=() if gold is None else (str(gold),),
                fields={key: str(row[key]) for key in ("corpus", "category") if key in row},
                span=(len(before), len(before) + len(word)),
            ),
        )

    def _document(self, corpus: str, document_id: str) -> list[str]:
        if Path(corpus).name != corpus:
            raise FieldError(f"'corpus' is {quoted(corpus)}, which is no name of a file.", "corpus")
        path = self._folder / f"{corpus}.json"
        places = self._places(path)
        if document_id not in places:
            raise FieldError(f"the document {quoted(document_id)} is not in {path}.", "no document")
        with path.open("rb") as file:
            file.seek(places[document_id])
            text = json.loads(file.readline())["text"]
        return str(text).split()

    def _read_places(self, path: Path) -> dict[str, int]:
        """Where the line of each document begins.

        Raises:
            DataError: The file does not exist, or is not that of zeshel's documents.
        """
        with open_text(path):  # raises what is wrong with it
            pass
        places, at = {}, 0
        with path.open("rb") as file:
            for line in file:
                try:
                    places[json.loads(line)["document_id"]] = at
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{path}: {quoted(line[:60])} is not a document of zeshel.") from error
                at += len(line)
        return places
