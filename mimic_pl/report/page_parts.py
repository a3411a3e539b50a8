"""What pages of mentions, entities and attention share; their templates are ``parts.html.jinja`` and ``parts.css``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from mimic_pl.linking.attention_and_gates import Token
from mimic_pl.linking.thumbnails import data_uri
from mimic_pl.records import Mention

_TEXT = 220
"""Maximum number of characters shown of an entity's text."""


def environment(*packages: str) -> Environment:
    """Templates of these packages, then those of the report; everything that they are given is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "mimic_pl.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def marked(mention: Mention) -> tuple[str, str, str]:
    """Split the sentence into the parts before, at and after the mention; if it is not found, all of it is before."""
    if mention.span is not None:
        start, stop = mention.span
        return mention.sentence[:start], mention.sentence[start:stop], mention.sentence[stop:]
    start = mention.sentence.lower().find(mention.mention.lower()) if mention.mention else -1
    # Lower-casing may change the length, which would mark the wrong letters: mark nothing then.
    if start < 0 or len(mention.sentence.lower()) != len(mention.sentence):
        return mention.sentence, "", ""
    stop = start + len(mention.mention)
    return mention.sentence[:start], mention.sentence[start:stop], mention.sentence[stop:]


def shaded(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens with the opacity of their background: the heaviest is darkest, and padding, which is merged, has none."""
    heaviest = max((token.weight for token in tokens if token.kind != "padding"), default=1.0)
    return [
        {
            "text": token.text,
            "kind": token.kind,
            "percent": 100 * token.weight,
            "depth": 0.85 * token.weight / heaviest if heaviest > 0 and token.kind != "padding" else 0.0,
        }
        for token in tokens
    ]


def excerpt(text: str) -> str:
    """The beginning of an entity's text."""
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def image_uri(image: Image.Image | None) -> str | None:
    """A thumbnail as a ``data:`` URI; None without an image."""
    return None if image is None else data_uri(image)
