"""The request of REL (van Hulst et al., SIGIR 2020), whose clients and the GERBIL middleware work unchanged."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from mimic_pl.serve.service import Service


class RELRequest(BaseModel):
    """A text and the places of its mentions."""

    text: str
    spans: Annotated[list[tuple[int, int]], Field(min_length=1, description="Start and length of each mention.")]


def rel_routes(service: Service) -> APIRouter:
    """The route ``/rel``."""
    router = APIRouter(tags=["REL"])

    @router.post("/rel")
    async def rel(request: RELRequest) -> list[tuple[int, int, str, str, float, float, str]]:
        """Link mentions of a text.

        For each that is not NIL: start, length, mention, id of the entity, its probability (0 without a calibration),
        0 (mentions are given, not found), and the type of the entity.
        """
        service.require_mentions(len(request.spans))
        service.limits.require_texts([request.text])
        spans = [(start, start + length) for start, length in request.spans]
        record = {"sentence": request.text, "spans": spans}
        (found,) = await service.batcher([record], 1, service.limits.seconds)
        rows = []
        for (start, length), links in zip(request.spans, found, strict=False):
            if links.error is not None:
                raise links.error
            if links.best is not None:
                entity = links.best.entity
                mention, probability = request.text[start : start + length], links.best.probability or 0.0
                rows.append((start, length, mention, entity.id, probability, 0.0, entity.fields.get("type", "")))
        return rows

    return router
