"""The two records that every reader produces and everything after it consumes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity of the knowledge base. Its position in the knowledge base is its place in the list.

    Attributes:
        id: The entity's identifier, for example ``"Q42"``; unique in the knowledge base.
        name: Its name, percent-decoded.
        fields: Every text field of the source by name (``attr``, ``desc``, ...), for the text template.
        images: File names of its images inside the knowledge base's image folder; empty if it has none.
    """

    id: str
    name: str
    fields: dict[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention: a word in a sentence, with the image beside it.

    Attributes:
        id: The mention's identifier as text.
        mention: The mentioned word or words, percent-decoded.
        sentence: The sentence around it.
        golds: ``id`` of the right entity or entities, in the order of the source; empty for ``nil`` and for unlabelled
            mentions.
        image: File name inside the mentions' image folder, or ``None``.
        fields: Every other text field of the source by name, for the text template.
    """

    id: str
    mention: str
    sentence: str
    golds: tuple[str, ...] = ()
    image: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
