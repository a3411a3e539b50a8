"""Every kind of answer of the reconciliation API has the form that version 0.2 of its specification gives it.

https://www.w3.org/community/reports/reconciliation/CG-FINAL-specs-0.2-20230410/, its appendix "JSON Schemas"
"""

from __future__ import annotations

import html.parser
import json
from typing import Any

import jsonschema  # which nbformat requires
import pytest

from mimic_pl import Linker
from tests.serve.parts import KINDS, knowledge_base

pytest.importorskip("fastapi_offline")
from starlette.testclient import TestClient

from mimic_pl.serve.app import create_app

pytestmark = pytest.mark.own_process

TEXT, NUMBER, WHOLE, TRUTH = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
NAME = {"type": "string", "minLength": 1}
URI = {"type": "string", "pattern": "^https?://"}
TEMPLATE = {"type": "string", "pattern": r"\{\{id\}\}"}


def record(required: dict[str, Any], closed: bool = False, **optional: Any) -> dict[str, Any]:
    """An object with these members; others too, unless it is closed."""
    members = {"properties": {**required, **optional}, "required": [*required]}
    return {"type": "object", **members, **({"additionalProperties": False} if closed else {})}


def every(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def by_key(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": schema}


NAMED = record({"id": NAME, "name": NAME}, description=TEXT)
TYPE = {"oneOf": [record({"id": NAME}, name=NAME), TEXT]}
PATH = record({"service_url": URI, "service_path": TEXT})
SETTING = record({"name": TEXT, "label": TEXT, "type": {"enum": ["number", "text", "checkbox", "select"]}})

MANIFEST = record(
    {
        "versions": {"type": "array", "items": TEXT, "contains": {"const": "0.2"}},
        **{"name": TEXT, "identifierSpace": URI, "schemaSpace": URI},
    },
    **{"documentation": URI, "logo": URI, "serviceVersion": TEXT, "batchSize": {"type": "integer", "minimum": 1}},
    **{"view": record({"url": TEMPLATE}), "feature_view": record({"url": TEMPLATE})},
    defaultTypes={**every(NAMED), "uniqueItems": True},
    preview=record({"url": TEMPLATE, "width": WHOLE, "height": WHOLE}),
    suggest=record({}, closed=True, entity=PATH, property=PATH, type=PATH),
    extend=record({}, propose_properties=PATH, property_settings=every(SETTING)),
)
CANDIDATE = record(
    {"id": NAME, "name": NAME, "score": NUMBER},
    **{"description": TEXT, "match": TRUTH, "type": every(TYPE)},
    features=every(record({"id": NAME, "value": {"type": ["boolean", "number"]}})),
)
RESULT = record({"result": every(CANDIDATE)})
SUGGESTED_ENTITIES = record({"result": every({**NAMED, "properties": {**NAMED["properties"], "notable": every(TYPE)}})})
SUGGESTED = record({"result": every(NAMED)})
PROPOSAL = record({"properties": every(NAMED)}, type=TEXT, limit=WHOLE)
VALUE = {
    "oneOf": [
        record({}, closed=True),
        record({"id": TEXT, "name": TEXT}, closed=True, description=TEXT),
        *(record({key: kind}, closed=True) for key, kind in (("str", TEXT), ("float", NUMBER), ("int", WHOLE))),
    ]
}
EXTENSION = record(
    {
        "meta": every(record({"id": NAME, "name": NAME}, type=record({"id": NAME}), service=URI)),
        "rows": by_key(by_key(every(VALUE))),
    }
)

QUERIES = {
    "one": {"query": "jaguar"},
    "typed": {"query": "jaguar", "type": KINDS[0], "type_strict": "should", "limit": 2},
    "types": {"query": "jaguar", "type": KINDS[:2], "type_strict": "all", "limit": 3.0},
    "with properties": {
        "query": "amazon",
        "properties": [
            {"pid": "attr", "v": "a river"},
            {"pid": "attr", "v": ["a river", 7, 1.5, True, {"id": "Q1"}, {"id": "Q1", "name": "x"}]},
        ],
    },
    "properties alone": {"properties": [{"pid": "name", "v": "amazon"}]},
    "an empty cell": {"query": ""},
    "no value": {"properties": [{"pid": "name", "v": []}, {"pid": "attr", "v": ""}]},
}
"""Everything that the specification lets a client send."""


def valid(schema: dict[str, Any], value: Any) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


@pytest.fixture
def served(tmp_path):
    def open_():
        knowledge_base(tmp_path)  # here, since the process that others are forked from must not use Lance
        linker = Linker.from_pretrained(tmp_path / "model", "cpu").with_knowledge_base(tmp_path / "kb")
        return TestClient(create_app(linker, token="secret"))

    return open_


def test_answers_have_the_form_of_the_specification(served):
    with served() as client:
        manifest = valid(MANIFEST, client.get("/reconcile").json())
        found = valid(by_key(RESULT), client.post("/reconcile", data={"queries": json.dumps(QUERIES)}).json())
        assert [*found] == [*QUERIES]
        sizes = {key: len(each["result"]) for key, each in found.items()}
        assert sizes == {
            **{"one": 9, "typed": 2, "types": 3, "with properties": 9, "properties alone": 9},
            **{"an empty cell": 0, "no value": 0},
        }
        for each in found.values():
            scores = [candidate["score"] for candidate in each["result"]]
            assert scores == sorted(scores, reverse=True)
            for candidate in each["result"]:
                features = [feature["id"] for feature in candidate["features"]]
                assert len(features) == len({*features}) > 0

        def suggested(kind, **parameters):
            service = manifest["suggest"][kind]
            return client.get(service["service_url"] + service["service_path"], params=parameters).json()

        entities = valid(SUGGESTED_ENTITIES, suggested("entity", prefix="", cursor=2))
        assert len(entities["result"]) == 7 and all(each["notable"] for each in entities["result"])
        assert valid(SUGGESTED, suggested("property", prefix="a"))["result"] == [{"id": "attr", "name": "attr"}]
        assert {each["id"] for each in valid(SUGGESTED, suggested("type", prefix=""))["result"]} == {*KINDS}

        proposed = manifest["extend"]["propose_properties"]
        address = proposed["service_url"] + proposed["service_path"]
        answer = valid(PROPOSAL, client.get(address, params={"type": KINDS[0], "limit": 2}).json())
        assert (answer["type"], answer["limit"], len(answer["properties"])) == (KINDS[0], 2, 2)

        wanted = [{"id": "attr", "settings": {"limit": 1}}, {"id": "name"}, {"id": "unknown"}]
        extend = {"ids": ["Q1", "Q2", "no such id"], "properties": wanted}
        rows = valid(EXTENSION, client.post("/reconcile", data={"extend": json.dumps(extend)}).json())["rows"]
        assert [*rows] == extend["ids"] and all([*row] == ["attr", "name", "unknown"] for row in rows.values())


def test_previews_are_pages(served):
    with served() as client:
        id = "http://example.org/<b>&'\" {{id}} é"
        entity = {"name": "<script>x</script>", "fields": {"attr": "<img src=x onerror=y>", "type": "<i>"}}
        put = client.put(
            "/entities/" + id.replace("/", "%2F").replace("'", "%27").replace("{", "%7B").replace("&", "%26"),
            json=entity, headers={"Authorization": "Bearer secret"},
        )  # fmt: skip
        assert put.status_code == 201 and put.json()["id"] == id
        preview = client.get("/reconcile/preview", params={"id": id})
        assert preview.headers["content-type"] == "text/html; charset=utf-8"
        tags, texts = [], []
        page = html.parser.HTMLParser()
        page.handle_starttag = lambda tag, attributes: tags.append(tag)
        page.handle_data = texts.append
        page.feed(preview.text)
        assert {*tags} <= {"meta", "title", "body", "b", "small", "p"}
        assert {entity["name"], id, entity["fields"]["attr"]} <= {*texts}


def test_pages_of_other_hosts_may_read_every_answer(served):
    with served() as client:
        origin = {"Origin": "https://example.org"}
        answers = [
            *(
                client.get(f"/reconcile{rest}", headers=origin)
                for rest in ("", "/suggest/entity?prefix=", "/properties")
            ),
            client.get("/reconcile?queries=nonsense", headers=origin),
            client.get("/reconcile/preview?id=nonsense", headers=origin),
            client.post("/reconcile", content=b"x", headers={**origin, "Content-Length": str(10**12)}),
            client.options("/reconcile", headers={**origin, "Access-Control-Request-Method": "POST"}),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 404, 413, 200]
        assert {answer.headers["access-control-allow-origin"] for answer in answers} == {"*"}
