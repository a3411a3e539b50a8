"""The record of a mention from what was typed, marked and dropped."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from mimic_pl.errors import DataError
from mimic_pl.processor.images import ImageError, opened_image
from mimic_pl.serve.limits import Limits


def mention_record(
    sentence: str, mention: str, start: float | None, image: str | None, limits: Limits
) -> dict[str, Any]:
    """A record for :meth:`Linker.link`.

    Args:
        sentence: The sentence.
        mention: The word or words.
        start: Where they were marked in the sentence, in characters. Ignored if something else is there, because the
            sentence or the mention was changed by hand since.
        image: The image as a ``data:`` URI; empty for none.
        limits: What is accepted.

    Raises:
        DataError: Nothing is marked, a text is too long or no text, or the image cannot be used.
    """
    limits.require_texts((sentence, mention))
    if not mention.strip():
        raise DataError("Nothing is marked. Select the mention in the sentence, or type it.")
    record: dict[str, Any] = {"sentence": sentence, "mention": mention, "image": image_content(image, limits)}
    place = -1 if start is None else int(start)
    if place >= 0 and sentence[place : place + len(mention)] == mention:
        record.update(start=place, end=place + len(mention))
    return record


def image_content(uri: str | None, limits: Limits) -> bytes | None:
    """The content of an image file in a ``data:`` URI, as browsers read files; None without one.

    Raises:
        DataError: It is none, or it cannot be decoded within the limits.
    """
    if not uri:
        return None
    kind, comma, encoded = uri.partition(",")
    if not (comma and kind.startswith("data:") and kind.endswith(";base64")):
        raise DataError("The image has to be the content of a file. Paths and addresses are never opened.")
    try:
        content = base64.b64decode(encoded, validate=True)
        with opened_image(content, limits.pixels):
            return content
    except binascii.Error as error:
        raise DataError("The image is not encoded as base64. Choose the file again.") from error
    except ImageError as error:
        raise DataError(f"{error}. Choose another image.") from error
