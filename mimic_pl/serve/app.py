"""The REST server: a thin caller of :class:`~mimic_pl.linking.Linker`."""

from __future__ import annotations

import asyncio
import hmac
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Path, Response, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST

import mimic_pl
from mimic_pl.linking import Linker
from mimic_pl.linking.explanation import LinkExplanation
from mimic_pl.linking.thumbnails import first_thumbnail
from mimic_pl.serve.guard import Guard
from mimic_pl.serve.limits import Limits
from mimic_pl.serve.messages import (
    EntityRequest,
    EntityResponse,
    ExplainRequest,
    ExplainResponse,
    LinkRequest,
    LinkResponse,
    MentionRequest,
    Readiness,
    Status,
    UnitScore,
)
from mimic_pl.serve.problems import BUSY, RETRY_AFTER, add_problems, documented
from mimic_pl.serve.reconciliation import reconciliation_routes
from mimic_pl.serve.rel import rel_routes
from mimic_pl.serve.service import Service

THUMBNAIL = 256
"""Longer side of a thumbnail, in pixels."""

_BEARER = HTTPBearer(auto_error=False)

_ID = Annotated[str, Path(description="Id of the entity.", min_length=1)]


def create_app(linker: Linker, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The server's application, for any ASGI server.

    Args:
        linker: A linker with a knowledge base.
        limits: What is accepted.
        token: Secret of those who may change the knowledge base; without one, nobody may.

    Example:
        >>> linker = Linker.from_pretrained("my_model").with_knowledge_base("my_kb")  # doctest: +SKIP
        >>> uvicorn.run(create_app(linker))  # doctest: +SKIP
    """
    service = Service(linker, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        linking = asyncio.create_task(service.batcher.run())
        app.state.ready = True
        yield
        app.state.ready = False
        linking.cancel()
        service.executor.shutdown()
        service.images.shutdown()

    about = (
        "Links mentions, words in sentences with images, to the entities of a knowledge base. Images are contents of "
        "requests: no path or address in a request is ever opened."
    )
    app = FastAPIOffline(
        title="mimic-pl", version=mimic_pl.__version__, description=about, lifespan=lifespan,
        responses=documented(400, 408, 413, 422, 503),
    )  # fmt: skip
    app.include_router(_linking(service))
    app.include_router(reconciliation_routes(service))
    app.include_router(rel_routes(service))
    app.include_router(_knowledge_base(service))
    if token is not None:
        app.include_router(_changes(service, token))
    app.include_router(_state(service, app))
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics)
    # Pages of other hosts may call it, as the reconciliation API requires, and read why they are refused; a token is
    # never sent by itself.
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["*"])
    add_problems(app)
    return app


def _linking(service: Service) -> APIRouter:
    router = APIRouter(tags=["linking"])

    @router.post("/link")
    async def link(request: LinkRequest) -> LinkResponse:
        """Link one mention or several. One that cannot be linked has an `error`, and costs the others nothing."""
        return await service.link(request.mentions, request.top_k)

    @router.post("/link/upload")
    async def link_upload(
        sentence: Annotated[str, Form()] = "",
        mention: Annotated[str | None, Form()] = None,
        start: Annotated[int | None, Form(ge=0)] = None,
        end: Annotated[int | None, Form(ge=0)] = None,
        entity_type: Annotated[str | None, Form()] = None,
        filter: Annotated[str | None, Form()] = None,
        top_k: Annotated[int, Form(ge=1)] = 10,
        image: Annotated[UploadFile | None, File(description="An image file.")] = None,
    ) -> LinkResponse:
        """Link one mention, given as a form with an image file."""
        content = None if image is None else await image.read()
        given = MentionRequest(
            sentence=sentence, mention=mention, start=start, end=end, entity_type=entity_type, filter=filter
        )
        return await service.link([given.model_copy(update={"image": content or None})], top_k)

    async def explained(request: ExplainRequest) -> LinkExplanation:
        service.require_candidates(request.top_k)
        service.limits.require_texts([request.entity])
        (record,) = await service.records([request.mention])
        return await service.work(service.linker.explain, record, request.entity, request.top_k)

    @router.post("/explain")
    async def explain(request: ExplainRequest) -> ExplainResponse:
        """Explain the rank of an entity for a mention."""
        found = await explained(request)
        return ExplainResponse(
            entity=EntityResponse.of(found.entity),
            rank=found.rank,
            entities=found.ranking.num_entities,
            scores={
                name: UnitScore(score=own.score, lower=own.lower, upper=own.upper, rank=own.rank)
                for name, own in found.ranking.scores.items()
            },
            shares=found.shares,
            words=[(token.text, token.weight) for token in found.words],
            patches=None if found.patches is None else found.patches.grid.tolist(),
            gates=found.gates,
            probability=found.probability,
            nil_probability=found.nil_probability,
        )

    @router.post("/explain/picture", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def explain_picture(request: ExplainRequest) -> Response:
        """The explanation as a picture."""
        found = await explained(request)
        return Response(await service.work(found.png), media_type="image/png")

    return router


def _knowledge_base(service: Service) -> APIRouter:
    router = APIRouter(tags=["knowledge base"], responses=documented(404))

    async def known(id: str) -> Any:
        entity = await service.work(service.linker.entity, id)
        if entity is None:
            raise HTTPException(404, "There is no entity with this id.")
        return entity

    @router.get("/thumbnails/{id:path}", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def thumbnail(id: _ID) -> Response:
        """The first image of an entity, small."""
        entity = await known(id)
        return Response(await asyncio.to_thread(_thumbnail, entity.images), media_type="image/png")

    @router.get("/entities/{id:path}")
    async def entity(id: _ID) -> EntityResponse:
        """An entity of the knowledge base."""
        return EntityResponse.of(await known(id))

    return router


def _thumbnail(images: Sequence[Any]) -> bytes:
    image = first_thumbnail(images, THUMBNAIL)
    if image is None:
        raise HTTPException(404, "The entity has no image that can be opened.")
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _changes(service: Service, token: str) -> APIRouter:
    def require_token(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401, "Pass the server's token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
            )

    token_first = [Depends(require_token)]
    router = APIRouter(tags=["knowledge base"], responses=documented(401), dependencies=token_first)

    @router.put("/entities/{id:path}", responses={201: {"model": EntityResponse, "description": "It is new."}})
    async def put_entity(id: _ID, request: EntityRequest, response: Response) -> EntityResponse:
        """Add an entity, or replace the one with this id; only this one is encoded. Committed when it answers."""
        service.limits.require_texts([id, *request.texts()])
        await service.require_images(request.images)
        record = {**request.fields, "id": id, "name": request.name}
        if await service.work(service.linker.put, record, request.images):
            response.status_code = 201
        return EntityResponse(id=id, name=request.name, fields=request.fields, images=len(request.images))

    @router.delete("/entities/{id:path}", status_code=204, responses=documented(404))
    async def delete_entity(id: _ID) -> None:
        """Delete an entity. Committed when it answers."""
        if await service.work(service.linker.entity, id) is None:
            raise HTTPException(404, "There is no entity with this id.")
        await service.work(service.linker.delete, id)

    return router


def _state(service: Service, app: FastAPI) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get("/health")
    async def health() -> Status:
        """Whether the process answers."""
        return Status(status="ok")

    @router.get("/ready")
    async def ready() -> Readiness:
        """Whether the server can link: the knowledge base is open, and the queue is not full."""
        if not app.state.ready or service.batcher.waiting >= service.limits.queue:
            raise HTTPException(503, BUSY, RETRY_AFTER)
        kb = await service.knowledge_base()
        return Readiness(status="ok", entities=len(kb), version=kb.version)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        kb = await service.knowledge_base()
        service.metrics.entities.set(len(kb))
        service.metrics.version.set(kb.version)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
