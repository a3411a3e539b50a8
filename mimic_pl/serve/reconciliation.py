"""The Entity Reconciliation API 0.2 of the W3C community group, which OpenRefine and other tools speak.

https://www.w3.org/community/reports/reconciliation/CG-FINAL-specs-0.2-20230410/

A query is a mention without an image; the values of its properties are its sentence.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

import mimic_pl
from mimic_pl.links import Link, Links
from mimic_pl.ranking.lance_dataset import sql_text
from mimic_pl.ranking.text_columns import TYPE
from mimic_pl.records import Entity
from mimic_pl.serve.problems import documented, named
from mimic_pl.serve.service import Service

DESCRIPTIONS = ("description", "desc", "attr")
"""Text fields of an entity that describe it, in the order in which they are looked for."""

SUGGESTIONS = 20
"""Suggestions at once."""

_WIDTH, _HEIGHT = 400, 160

_CURSOR = Annotated[int, Query(ge=0, description="How many to skip.")]


class Reference(BaseModel):
    """An entity as a value of a property."""

    id: str
    name: str | None = None


Value = bool | int | float | str | Reference


class Property(BaseModel):
    """Values of a property of what is looked for."""

    pid: str
    v: Value | list[Value]

    @property
    def texts(self) -> list[str]:
        """The values as texts."""
        values = self.v if isinstance(self.v, list) else [self.v]
        return [value.name or value.id if isinstance(value, Reference) else str(value) for value in values]


class ReconciliationQuery(BaseModel):
    """A query of a batch."""

    model_config = ConfigDict(extra="forbid")

    query: str | None = None
    type: str | list[str] = []
    limit: Annotated[int | None, Field(ge=1)] = None
    properties: list[Property] = []
    type_strict: Annotated[str, Field(pattern="^(any|should|all)$")] = "any"

    @model_validator(mode="after")
    def _asks_for_something(self) -> ReconciliationQuery:
        if self.query is None and not self.properties:
            raise ValueError("a query needs 'query' or 'properties'")
        return self

    @property
    def words(self) -> list[str]:
        """What is looked for: the query and the values of the properties, without empty ones."""
        return [text for text in (self.query, *(text for each in self.properties for text in each.texts)) if text]

    @property
    def types(self) -> list[str]:
        """The types that are asked for."""
        return [type for type in ([self.type] if isinstance(self.type, str) else self.type) if type]

    def record(self, known: Sequence[str]) -> dict[str, Any]:
        """The mention.

        An entity has one type, so that several types mean any of them. A type that entities only ``should`` have, as
        OpenRefine always asks for, restricts if there are such entities.

        Args:
            known: All types of entities.
        """
        words = self.words
        types = [type for type in self.types if type in known or self.type_strict != "should"]
        return {
            "mention": words[0],
            "sentence": ", ".join(words),
            "filter": f"{TYPE} IN ({', '.join(map(sql_text, types))})" if known and types else None,
        }


class PropertyOfExtension(BaseModel):
    """A property to fetch."""

    id: str


class ExtensionQuery(BaseModel):
    """Entities and properties to fetch of them."""

    ids: list[str]
    properties: list[PropertyOfExtension]


class TypeOfEntity(BaseModel):
    """A type."""

    id: str
    name: str


class Suggestion(BaseModel):
    """An entity, a property or a type."""

    id: str
    name: str
    description: str | None = None
    notable: Annotated[list[TypeOfEntity] | None, Field(description="Types of an entity.")] = None


class Suggestions(BaseModel):
    """What begins with a prefix."""

    result: list[Suggestion]


class ProposedProperties(BaseModel):
    """Properties that can be fetched of entities."""

    properties: list[Suggestion]
    type: str | None = None
    limit: int | None = None


_QUERIES = TypeAdapter(dict[str, ReconciliationQuery])


def reconciliation_routes(service: Service) -> APIRouter:
    """Routes of the API below ``/reconcile``."""
    router = APIRouter(prefix="/reconcile", tags=["reconciliation"])

    async def answered(given: Mapping[str, ReconciliationQuery]) -> dict[str, Any]:
        asked = {key: query for key, query in given.items() if query.words}  # an empty cell finds nothing
        limits = [min(query.limit or 10, service.limits.candidates) for query in asked.values()]
        typed = any(query.types for query in asked.values())
        known = await service.work(service.linker.values, TYPE) if typed else []
        records = [query.record(known) for query in asked.values()]
        service.require_mentions(len(records))
        service.limits.require_texts([text for record in records for text in record.values() if text])
        found = await service.batcher(records, max(limits), service.limits.seconds) if records else []
        answers = zip(asked.items(), found, limits, strict=True)
        return {
            **{key: {"result": []} for key in given},
            **{key: _answer(query.query or "", links[0], limit) for (key, query), links, limit in answers},
        }

    async def dispatched(
        request: Request, queries: str | None, query: str | None, extend: str | None
    ) -> dict[str, Any]:
        if extend is not None:
            return await _extended(service, _parsed(ExtensionQuery.model_validate_json, extend, "extend"))
        if queries is not None:
            return await answered(_parsed(_QUERIES.validate_json, queries, "queries"))
        if query is not None:
            single = query if query.lstrip().startswith("{") else json.dumps({"query": query})
            return (await answered({"q": _parsed(ReconciliationQuery.model_validate_json, single, "query")}))["q"]
        return await _manifest(service, str(request.base_url).rstrip("/"))

    @router.get("")
    async def reconcile(
        request: Request,
        queries: Annotated[str | None, Query(description="Queries by key, as JSON.")] = None,
        query: Annotated[str | None, Query(description="A single query: a name, or JSON.")] = None,
        extend: Annotated[str | None, Query(description="Entities and properties to fetch, as JSON.")] = None,
    ) -> dict[str, Any]:
        """The service's manifest; with a parameter, the answer to queries."""
        return await dispatched(request, queries, query, extend)

    @router.post("")
    async def reconcile_form(
        request: Request,
        queries: Annotated[str | None, Form()] = None,
        query: Annotated[str | None, Form()] = None,
        extend: Annotated[str | None, Form()] = None,
    ) -> dict[str, Any]:
        """The same with a form."""
        return await dispatched(request, queries, query, extend)

    @router.get("/suggest/entity", response_model_exclude_none=True)
    async def suggest_entity(prefix: str, cursor: _CURSOR = 0) -> Suggestions:
        """Entities whose name begins with a prefix, or whose id it is."""
        service.limits.require_texts([prefix])
        entities = await service.work(service.linker.named, prefix, cursor, SUGGESTIONS)
        result = [
            Suggestion(id=e.id, name=e.name, description=_described(e) or None, notable=_types(e) or None)
            for e in entities
        ]
        return Suggestions(result=result)

    @router.get("/suggest/property", response_model_exclude_none=True)
    async def suggest_property(prefix: str, cursor: _CURSOR = 0) -> Suggestions:
        """Columns of the knowledge base that begin with a prefix."""
        return _page(await _properties(service), prefix, cursor)

    @router.get("/suggest/type", response_model_exclude_none=True)
    async def suggest_type(prefix: str, cursor: _CURSOR = 0) -> Suggestions:
        """Types of entities that begin with a prefix."""
        return _page(await service.work(service.linker.values, TYPE), prefix, cursor)

    @router.get("/properties", response_model_exclude_none=True)
    async def properties(
        type: str | None = None, limit: Annotated[int | None, Query(ge=1)] = None
    ) -> ProposedProperties:
        """Properties that can be fetched: the columns of the knowledge base."""
        own = [Suggestion(id=name, name=name) for name in (await _properties(service))[:limit]]
        return ProposedProperties(properties=own, type=type, limit=limit)

    @router.get("/preview", response_class=Response, responses={200: {"content": {"text/html": {}}}, **documented(404)})
    async def preview(id: str) -> HTMLResponse:
        """A small page about an entity, with its image."""
        entity = await service.work(service.linker.entity, id)
        if entity is None:
            raise HTTPException(404, "There is no entity with this id.")
        source = f"../thumbnails/{quote(entity.id, safe='')}"
        image = f'<img src="{source}" alt="" style="float:left;max-height:130px;margin-right:12px">'
        name, id, text = (html.escape(part) for part in (entity.name, entity.id, _described(entity)))
        body = f"{image if entity.images else ''}<b>{name}</b> <small>{id}</small><p>{text}</p>"
        style = "font:14px sans-serif;margin:8px;overflow:hidden"
        return HTMLResponse(f'<!doctype html><meta charset="utf-8"><title>{name}</title><body style="{style}">{body}')

    return router


async def _manifest(service: Service, root: str) -> dict[str, Any]:
    at = f"{root}/reconcile"
    kb = await service.knowledge_base()
    manifest: dict[str, Any] = {
        "versions": ["0.2"],
        "name": f"mimic-pl: {kb.folder.name}",
        "serviceVersion": mimic_pl.__version__,
        "identifierSpace": f"{root}/entities/",
        "schemaSpace": f"{at}/properties",
        "documentation": f"{root}/docs",
        "view": {"url": f"{root}/entities/{{{{id}}}}"},
        "preview": {"url": f"{at}/preview?id={{{{id}}}}", "width": _WIDTH, "height": _HEIGHT},
        "suggest": {
            "entity": {"service_url": at, "service_path": "/suggest/entity"},
            "property": {"service_url": at, "service_path": "/suggest/property"},
        },
        "extend": {"propose_properties": {"service_url": at, "service_path": "/properties"}, "property_settings": []},
        "batchSize": service.limits.mentions,
    }
    if TYPE in kb.columns:
        manifest["suggest"]["type"] = {"service_url": at, "service_path": "/suggest/type"}
    return manifest


def _parsed(parse: Any, text: str, parameter: str) -> Any:
    try:
        return parse(text)
    except ValidationError as error:
        raise HTTPException(422, named(error.errors(), parameter)) from error


def _answer(query: str, links: Links, limit: int) -> dict[str, Any]:
    if links.error is not None:
        raise links.error
    return {"result": [_candidate(link, n == 0 and _matches(query, links)) for n, link in enumerate(links[:limit])]}


def _candidate(link: Link, matches: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "id": link.entity.id,
        "name": link.entity.name,
        "score": link.score if link.probability is None else 100 * link.probability,
        "match": matches,
        "type": [each.model_dump() for each in _types(link.entity)],
        "features": [{"id": name, "value": score} for name, score in link.units.items()],
    }
    if description := _described(link.entity):
        candidate["description"] = description
    return candidate


def _matches(query: str, links: Links) -> bool:
    """Whether the first candidate is meant for certain: by its probability, or as the only one of that name."""
    if (first := links.best) is None:
        return False
    if first.probability is not None:
        return first.probability >= 0.95
    same = [link for link in links if link.entity.name.casefold() == query.casefold()]
    return len(same) == 1 and same[0] is links[0]


def _types(entity: Entity) -> list[TypeOfEntity]:
    name = entity.fields.get(TYPE)
    return [TypeOfEntity(id=name, name=name)] if name else []


def _described(entity: Entity) -> str:
    return next((entity.fields[name] for name in DESCRIPTIONS if entity.fields.get(name)), "")


async def _properties(service: Service) -> list[str]:
    return [name for name in (await service.knowledge_base()).columns if name != "id"]


def _page(names: Sequence[str], prefix: str, cursor: int) -> Suggestions:
    found = [name for name in names if name.casefold().startswith(prefix.casefold())]
    return Suggestions(result=[Suggestion(id=name, name=name) for name in found[cursor : cursor + SUGGESTIONS]])


async def _extended(service: Service, query: ExtensionQuery) -> dict[str, Any]:
    service.require_mentions(len(query.ids))
    wanted = [each.id for each in query.properties]
    entities = await service.work(service.linker.known, query.ids)

    def values(id: str, name: str) -> list[dict[str, str]]:
        entity = entities.get(id)
        text = None if entity is None else entity.name if name == "name" else entity.fields.get(name)
        return [{"str": text}] if text else []

    return {
        "meta": [{"id": name, "name": name} for name in wanted],
        "rows": {id: {name: values(id, name) for name in wanted} for id in query.ids},
    }
