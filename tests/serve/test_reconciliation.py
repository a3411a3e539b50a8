"""The reconciliation API, checked with a client that others wrote; and REL's request."""

from __future__ import annotations

import json

import pytest

from mimic_pl import Linker
from tests.serve.parts import KINDS, knowledge_base

pytest.importorskip("fastapi_offline")
from starlette.testclient import TestClient

from mimic_pl.serve.app import create_app
from mimic_pl.serve.limits import Limits

pytestmark = pytest.mark.own_process


@pytest.fixture
def served(tmp_path):
    def open_(**limits):
        knowledge_base(tmp_path)  # here, since the process that others are forked from must not use Lance
        linker = Linker.from_pretrained(tmp_path / "model", "cpu").with_knowledge_base(tmp_path / "kb")
        return linker, TestClient(create_app(linker, Limits(**limits)))

    return open_


def asked(client, parameter, value, status=200):
    by_get = client.get("/reconcile", params={parameter: json.dumps(value)})
    by_form = client.post("/reconcile", data={parameter: json.dumps(value)})
    assert by_get.status_code == by_form.status_code == status and by_get.json() == by_form.json()
    return by_get.json()


def test_the_manifest_leads_to_everything(served):
    _, client = served(mentions=50)
    with client:
        manifest = client.get("/reconcile").json()
        assert "0.2" in manifest["versions"] and manifest["batchSize"] == 50
        assert client.get(manifest["view"]["url"].replace("{{id}}", "Q1")).json()["id"] == "Q1"
        page = client.get(manifest["preview"]["url"].replace("{{id}}", "Q0"))
        assert page.headers["content-type"].startswith("text/html") and "Q0" in page.text
        (image,) = [part.split('"')[0] for part in page.text.split('src="')[1:]]
        base = manifest["preview"]["url"].rsplit("/", 1)[0]
        assert client.get(f"{base}/{image}").headers["content-type"] == "image/png"
        for kind in ("entity", "property", "type"):
            service = manifest["suggest"][kind]
            answer = client.get(service["service_url"] + service["service_path"], params={"prefix": ""}).json()
            assert answer["result"] and all(each["id"] and each["name"] for each in answer["result"])
        proposed = manifest["extend"]["propose_properties"]
        answer = client.get(proposed["service_url"] + proposed["service_path"], params={"type": "x"}).json()
        assert [each["id"] for each in answer["properties"]] == ["name", "attr", "type"] and answer["type"] == "x"
        origin = {"Origin": "https://example.org"}
        assert client.get("/reconcile", headers=origin).headers["access-control-allow-origin"] == "*"


def test_queries_are_linked(served):
    linker, client = served()
    with client:
        queries = {
            "a": {"query": "jaguar"},
            "b": {"query": "jaguar", "limit": 2, "properties": [{"pid": "attr", "v": ["a river", {"id": "Q1"}]}]},
            "c": {"query": "jaguar", "type": KINDS[1]},
            "d": {"query": "jaguar", "type": KINDS[:2], "type_strict": "any"},
            "e": {"query": "jaguar", "type": KINDS[1], "type_strict": "should"},
            "e2": {"query": "jaguar", "type": ["no such type"], "type_strict": "should"},
            "e3": {"query": "jaguar", "type": "no such type"},
            "f": {"properties": [{"pid": "name", "v": "amazon"}, {"pid": "since", "v": 1900}]},
        }
        found = asked(client, "queries", queries)
        records = [
            {"mention": "jaguar", "sentence": "jaguar"},
            {"mention": "jaguar", "sentence": "jaguar, a river, Q1"},
            {"mention": "jaguar", "sentence": "jaguar", "entity_type": KINDS[1]},
            {"mention": "jaguar", "sentence": "jaguar", "filter": f"type IN ('{KINDS[0]}', '{KINDS[1]}')"},
            {"mention": "jaguar", "sentence": "jaguar", "entity_type": KINDS[1]},
            {"mention": "jaguar", "sentence": "jaguar"},
            {"mention": "jaguar", "sentence": "jaguar", "entity_type": "no such type"},
            {"mention": "amazon", "sentence": "amazon, 1900"},
        ]
        for key, links in zip(queries, linker.link(records), strict=True):
            links = links[: queries[key].get("limit", 10)]
            result = found[key]["result"]
            assert [(each["id"], each["name"], each["score"]) for each in result] == [
                (link.entity.id, link.entity.name, link.score) for link in links
            ]
            if key == "e3":
                assert result == []
                continue
            assert {f["id"]: f["value"] for f in result[0]["features"]} == links[0].units
            assert result[0]["type"] == [{"id": links[0].entity.fields["type"], "name": links[0].entity.fields["type"]}]
            assert not any(each["match"] for each in result[1:])
        single = client.get("/reconcile", params={"query": "jaguar"}).json()
        assert single == asked(client, "query", {"query": "jaguar"}) == found["a"]
        assert asked(client, "queries", {}) == {}


WRONG = [
    ("queries", {"a": {}}, "needs 'query' or 'properties'"),
    ("queries", {"a": {"query": "x", "limit": 0}}, "queries (a.limit)"),
    ("queries", {"a": {"query": "x", "type_strict": "maybe"}}, "queries (a.type_strict)"),
    ("queries", [], "queries: "),
    ("queries", {str(n): {"query": "x"} for n in range(4)}, "4 mentions; at most 3"),
    ("extend", {"ids": ["Q1"]}, "extend (properties)"),
]


def test_wrong_queries_are_named(served):
    _, client = served(mentions=3)
    with client:
        for parameter, value, message in WRONG:
            assert message in asked(client, parameter, value, 422)["detail"]


def test_values_of_entities(served):
    linker, client = served()
    with client:
        wanted = {"ids": ["Q1", "Q77"], "properties": [{"id": "attr"}, {"id": "name"}, {"id": "unknown"}]}
        answer = asked(client, "extend", wanted)
        entity = linker.knowledge_base.known(["Q1"])["Q1"]
        assert answer["rows"] == {
            "Q1": {"attr": [{"str": entity.fields["attr"]}], "name": [{"str": entity.name}], "unknown": []},
            "Q77": {"attr": [], "name": [], "unknown": []},
        }
        assert [each["id"] for each in answer["meta"]] == ["attr", "name", "unknown"]


def test_suggestions_begin_with_the_prefix_in_any_case(served):
    linker, client = served()
    with client:
        kb = linker.knowledge_base
        names = {entity.id: entity.name for entity in kb.entities(kb.where("id != ''"))}

        def ids(**parameters):
            return [each["id"] for each in client.get("/reconcile/suggest/entity", params=parameters).json()["result"]]

        first = names["Q0"]
        assert ids(prefix=first[:3].upper()) == [id for id, name in names.items() if name.startswith(first[:3])]
        assert ids(prefix="Q5") == ["Q5"] and ids(prefix="it's %") == []
        assert ids(prefix="", cursor=4) == list(names)[4:]
        types = client.get("/reconcile/suggest/type", params={"prefix": KINDS[0][:2].upper()}).json()["result"]
        assert {"id": KINDS[0], "name": KINDS[0]} in types


def test_a_client_that_others_wrote(served, monkeypatch):
    """py-reconciliation-service-api parses every answer with its own models."""
    api = pytest.importorskip("py_reconciliation_service_api")
    from py_reconciliation_service_api.models.reconciliation import ReconciliationQuery

    linker, client = served()
    with client:
        monkeypatch.setattr(api.httpx, "Client", lambda **options: client)  # the transport alone
        service = api.build_reconciliation_service("http://testserver/reconcile")
        words = ["jaguar", "amazon", "no such name"]
        found = service.reconcile_batch([ReconciliationQuery(query=word, limit=4) for word in words])
        for word, result in zip(words, found, strict=True):
            links = linker.link({"mention": word, "sentence": word}, top_k=4)
            assert [(each.id, each.score) for each in result.result] == [(link.entity.id, link.score) for link in links]


def test_the_request_of_rel(served):
    linker, client = served()
    with client:
        text = "the jaguar and the amazon"
        found = client.post("/rel", json={"text": text, "spans": [[4, 6], [19, 6]]}).json()
        links = linker.link({"sentence": text, "spans": [[4, 10], [19, 25]]})
        expected = [
            [start, 6, word, each[0].entity.id, 0.0, 0.0, each[0].entity.fields["type"]]
            for start, word, each in zip((4, 19), ("jaguar", "amazon"), links, strict=True)
        ]
        assert found == expected
        outside = client.post("/rel", json={"text": text, "spans": [[19, 60]]})
        assert outside.status_code == 422 and "from 19 to 79" in outside.json()["detail"]
