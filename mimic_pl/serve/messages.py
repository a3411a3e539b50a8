"""Bodies of requests and answers, which are also the OpenAPI schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field

from mimic_pl.links import Links
from mimic_pl.records import Entity


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _not_named(*reserved: str) -> AfterValidator:
    """Refuse fields with the name of a key that records have themselves."""

    def check(fields: dict[str, str]) -> dict[str, str]:
        if taken := [name for name in reserved if name in fields]:
            raise ValueError(f"{taken[0]!r} cannot be the name of a field")
        return fields

    return AfterValidator(check)


_OF_BOTH = ("id", "image", "images", "arrays")
_OF_MENTION = ("mention", "sentence", "start", "end", "spans", "golds", "entity_type", "candidates", "filter")


class MentionRequest(_Request):
    """A mention: a word in a sentence, or its place there, with an image."""

    sentence: Annotated[str, Field(description="The text around the mention.", examples=["Jordan scored 30."])] = ""
    mention: Annotated[str | None, Field(description="The word or words.", examples=["Jordan"])] = None
    start: Annotated[int | None, Field(ge=0, description="Instead of `mention`: its first character.")] = None
    end: Annotated[int | None, Field(ge=0, description="The character after its last one.")] = None
    spans: Annotated[
        list[tuple[int, int]] | None, Field(min_length=1, description="Several mentions of the sentence: start, end.")
    ] = None
    image: Annotated[Base64Bytes | None, Field(description="An image file, encoded as base64.")] = None
    entity_type: Annotated[str | None, Field(description="Only entities with this `type`.")] = None
    candidates: Annotated[list[str] | None, Field(description="Only entities with these ids.")] = None
    filter: Annotated[str | None, Field(description="Only entities that this condition selects.")] = None
    fields: Annotated[
        dict[str, str], Field(description="Other texts of the text template."), _not_named(*_OF_BOTH, *_OF_MENTION)
    ] = {}

    def texts(self) -> list[str]:
        """All texts, whose length is limited."""
        own = (self.sentence, self.mention, self.entity_type, self.filter)
        return [text for text in (*own, *(self.candidates or ()), *self.fields, *self.fields.values()) if text]

    def record(self) -> dict[str, Any]:
        """The record for :meth:`Linker.link`."""
        return {**self.fields, **self.model_dump(exclude={"image", "fields"}, exclude_none=True), "image": self.image}


class LinkRequest(_Request):
    """Mentions to link."""

    mentions: Annotated[list[MentionRequest], Field(min_length=1)]
    top_k: Annotated[int, Field(ge=1, description="Candidates per mention.")] = 10


class Candidate(BaseModel):
    """A candidate entity of a mention."""

    id: str
    name: str
    score: Annotated[float, Field(description="Overall score, which the candidates are ordered by.")]
    probability: Annotated[float | None, Field(description="Probability that it is meant, if the model is calibrated.")]
    units: Annotated[dict[str, float], Field(description="Score of each unit.")]


class LinkedMention(BaseModel):
    """The candidates of a mention, best first."""

    record: Annotated[int, Field(description="Position of its record in the request, from 0.")]
    mention: str | None
    start: int | None
    end: int | None
    nil: Annotated[bool, Field(description="Whether no entity is more probable than any of them.")]
    nil_probability: float | None
    candidates: list[Candidate]
    error: Annotated[str | None, Field(description="Why it could not be linked.")]

    @classmethod
    def of(cls, links: Links, record: int, top_k: int) -> LinkedMention:
        """The message of the links of a mention."""
        mention = links.mention
        start, end = (None, None) if mention is None or mention.span is None else mention.span
        candidates = [
            Candidate(
                id=link.entity.id,
                name=link.entity.name,
                score=link.score,
                probability=link.probability,
                units=link.units,
            )
            for link in links[:top_k]
        ]
        return cls(
            record=record,
            mention=None if mention is None else mention.mention,
            start=start,
            end=end,
            nil=links.is_nil,
            nil_probability=links.nil_probability,
            candidates=candidates,
            error=None if links.error is None else str(links.error),
        )


class LinkResponse(BaseModel):
    """The links of all mentions of a request, in their order."""

    mentions: list[LinkedMention]

    @classmethod
    def of(cls, found: Sequence[Sequence[Links]], top_k: int) -> LinkResponse:
        """The message of the links by record."""
        return cls(mentions=[LinkedMention.of(each, n, top_k) for n, links in enumerate(found) for each in links])


class EntityRequest(_Request):
    """An entity of the knowledge base."""

    name: str
    fields: Annotated[
        dict[str, str], Field(description="Texts by name, such as `attr` or `type`."), _not_named(*_OF_BOTH, "name")
    ] = {}
    images: Annotated[list[Base64Bytes], Field(description="Image files, encoded as base64, best first.")] = []

    def texts(self) -> list[str]:
        """All texts, whose length is limited."""
        return [self.name, *self.fields, *self.fields.values()]


class EntityResponse(BaseModel):
    """An entity of the knowledge base."""

    id: str
    name: str
    fields: dict[str, str]
    images: Annotated[int, Field(description="Number of its images; see its thumbnail.")]

    @classmethod
    def of(cls, entity: Entity) -> EntityResponse:
        """The message of an entity."""
        return cls(id=entity.id, name=entity.name, fields=entity.fields, images=len(entity.images))


class ExplainRequest(_Request):
    """A mention and the entity whose rank is to be explained."""

    mention: MentionRequest
    entity: Annotated[str, Field(description="Id of the entity.")]
    top_k: Annotated[int, Field(ge=0, description="Other entities on top to compare with.")] = 5


class UnitScore(BaseModel):
    """Score and rank of an entity by one unit, or by all (`overall`)."""

    score: float
    lower: Annotated[float, Field(description="Lower bound of the exact score.")]
    upper: Annotated[float, Field(description="Upper bound of the exact score.")]
    rank: int


class ExplainResponse(BaseModel):
    """Why an entity has its rank for a mention."""

    entity: EntityResponse
    rank: int
    entities: Annotated[int, Field(description="Number of entities that were ranked.")]
    scores: Annotated[dict[str, UnitScore], Field(description="By unit, and `overall`.")]
    shares: Annotated[dict[str, float], Field(description="What each unit contributes to the overall score.")]
    words: Annotated[list[tuple[str, float]], Field(description="Attention to the tokens of the mention's text.")]
    patches: Annotated[list[list[float]] | None, Field(description="Attention to the mention's image, row by row.")]
    gates: dict[str, float]
    probability: float | None
    nil_probability: float | None


class Status(BaseModel):
    """State of the server."""

    status: str


class Readiness(Status):
    """The knowledge base that mentions are linked to."""

    entities: int
    version: int
