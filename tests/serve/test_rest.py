"""The REST server answers what the linker answers, whatever runs beside it, and refuses what is too large or wrong."""

from __future__ import annotations

import base64
import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from mimic_pl import Entity, Linker
from tests.serve.parts import KINDS, knowledge_base

pytest.importorskip("fastapi_offline")
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from mimic_pl.serve.app import create_app
from mimic_pl.serve.limits import Limits

pytestmark = pytest.mark.own_process

MENTION = {"mention": "jaguar", "sentence": "the jaguar and the amazon"}
TOKEN = {"Authorization": "Bearer secret"}


def opened(folder):
    return Linker.from_pretrained(folder / "model", "cpu").with_knowledge_base(folder / "kb")


def png(size=(30, 20), color=(200, 10, 10)):
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return content.getvalue()


def in_base64(content):
    return base64.b64encode(content).decode()


def expected(links):
    return [
        {"id": e.entity.id, "name": e.entity.name, "score": e.score, "probability": e.probability, "units": e.units}
        for e in links
    ]


def test_links_are_those_of_the_linker(tmp_path):
    knowledge_base(tmp_path)
    linker = opened(tmp_path)
    with TestClient(create_app(linker)) as client:
        records = [
            {**MENTION, "image": png()},
            {"sentence": MENTION["sentence"], "spans": [[4, 10], [19, 25]]},
            {**MENTION, "entity_type": KINDS[1]},
            {**MENTION, "candidates": ["Q3", "Q8"]},
            {**MENTION, "filter": f"type = '{KINDS[0]}'"},
            {**MENTION, "filter": "nonsense"},
        ]
        bodies = [{**r, **({"image": in_base64(r["image"])} if "image" in r else {})} for r in records]
        answer = client.post("/link", json={"mentions": bodies, "top_k": 4})
        assert answer.status_code == 200
        found = answer.json()["mentions"]
        links = linker.link(records, top_k=4)
        assert [each["candidates"] for each in found] == [expected(each) for each in links]
        assert [each["record"] for each in found] == [0, 1, 1, 2, 3, 4, 5]
        assert [(each["mention"], each["start"]) for each in found[1:3]] == [("jaguar", 4), ("amazon", 19)]
        assert "nonsense" in found[-1]["error"] and not any(each["error"] for each in found[:-1])
        form = {"sentence": MENTION["sentence"], "mention": "jaguar", "top_k": "4"}
        uploaded = client.post("/link/upload", data=form, files={"image": ("a.png", png())})
        assert uploaded.json()["mentions"] == [found[0]]
        without = client.post("/link/upload", data=form).json()["mentions"][0]["candidates"]
        assert without == expected(linker.link(MENTION, top_k=4)) != found[0]["candidates"]


def test_concurrent_requests_share_batches_and_get_their_own_links(tmp_path):
    knowledge_base(tmp_path)
    linker = opened(tmp_path)
    words = ("jaguar", "amazon", "river", "cat", "phoenix")
    requests = [
        ([{"mention": words[(n + i) % 5], "sentence": f"number {n}"} for i in range(1 + n % 3)], 1 + n % 4)
        for n in range(60)
    ]
    alone = [[expected(links) for links in linker.link(records, top_k=top_k)] for records, top_k in requests]
    with TestClient(create_app(linker)) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda r: client.post("/link", json={"mentions": r[0], "top_k": r[1]}), requests))
        metrics = {
            s.name: s.value for f in text_string_to_metric_families(client.get("/metrics").text) for s in f.samples
        }
    assert [[each["candidates"] for each in answer.json()["mentions"]] for answer in answers] == alone
    assert metrics["mimic_batch_mentions_sum"] == sum(len(records) for records, _ in requests)
    assert metrics["mimic_batch_mentions_count"] < 60, "requests that come in meanwhile are linked together"
    assert metrics["mimic_waiting_mentions"] == 0 and metrics["mimic_entities"] == 9


REFUSED = [
    ({"body": 500}, {"mentions": [{**MENTION, "sentence": "x" * 500}]}, 413, "larger than 500 bytes"),
    ({"characters": 30}, {"mentions": [{**MENTION, "sentence": "x" * 31}]}, 422, "31 characters; at most 30"),
    ({"mentions": 2}, {"mentions": [MENTION] * 3}, 422, "3 mentions; at most 2"),
    ({"candidates": 5}, {"mentions": [MENTION], "top_k": 6}, 422, "at most 5 candidates"),
    ({"queue": 2}, {"mentions": [MENTION] * 3}, 503, "busy"),
    (
        {"pixels": 99},
        {"mentions": [{**MENTION, "image": in_base64(png((10, 10)))}]},
        422,
        "is oversized: 10 x 10 pixels",
    ),
    ({}, {"mentions": [{**MENTION, "image": in_base64(b"no image")}]}, 422, "of 8 bytes> is unreadable"),
    ({}, {"mentions": [{**MENTION, "image": "/etc/passwd"}]}, 422, "Base64"),
    ({}, {"mentions": [{**MENTION, "image": "http://localhost/a.png"}]}, 422, "of 15 bytes> is unreadable"),
    ({}, {"mentions": [{**MENTION, "images": ["a.png"]}]}, 422, "images"),
    ({}, {"mentions": []}, 422, "at least 1"),
]


def test_what_is_refused(tmp_path):
    knowledge_base(tmp_path)
    linker = opened(tmp_path)
    for limit, request_, status, message in REFUSED:
        with TestClient(create_app(linker, Limits(**limit))) as client:
            answer = client.post("/link", json=request_)
            assert answer.status_code == status and message in answer.text
            assert ("Retry-After" in answer.headers) == (status == 503)
            chunks = (part for part in (b'{"mentions": ', b"[", b" " * 600, b"]}"))
            assert client.post("/link", content=chunks).status_code == (413 if "body" in limit else 422)
            assert client.get("/health").json() == {"status": "ok"}


def test_entities_are_read_changed_and_linked_at_once(tmp_path):
    knowledge_base(tmp_path)
    reader = opened(tmp_path)
    with TestClient(create_app(opened(tmp_path), token="secret")) as client, TestClient(create_app(reader)) as other:
        assert client.get("/entities/Q1").json() == {
            "id": "Q1", "name": reader.knowledge_base.known(["Q1"])["Q1"].name, "images": 0,
            "fields": {"attr": f"a {KINDS[1]}", "type": KINDS[1]},
        }  # fmt: skip
        small = Image.open(io.BytesIO(client.get("/thumbnails/Q0").content))
        assert small.size == (256, 34) and small.getpixel((99, 9)) == (10, 90, 200)
        for path in ("/entities/Q77", "/thumbnails/Q77", "/thumbnails/Q1"):
            assert client.get(path).status_code == 404
        new = {"name": "jaguar", "fields": {"attr": "a car", "type": "car"}, "images": [in_base64(png())]}
        path = "/entities/http%3A%2F%2Fexample.org%2Fentity%2F1"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert client.put(path, json=new, headers=headers).status_code == 401
        assert client.put(path, json=new, headers=TOKEN).status_code == 201
        id = "http://example.org/entity/1"
        assert client.get(path).json()["id"] == id
        assert client.get(path.replace("entities", "thumbnails")).status_code == 200
        same = opened(tmp_path)
        assert same.knowledge_base.known([id])[id].fields == new["fields"]

        def ids(of):
            found = of.post("/link", json={"mentions": [MENTION], "top_k": 20}).json()["mentions"][0]["candidates"]
            assert found == expected(opened(tmp_path).link(MENTION, top_k=20)) or of is other
            return {each["id"] for each in found}

        assert id in ids(client)
        time.sleep(1.1)
        assert id in ids(other), "another process sees the change"
        assert client.put(path, json={**new, "name": "amazon"}, headers=TOKEN).status_code == 200
        assert client.get(path).json()["name"] == "amazon"
        assert client.delete(path).status_code == 401
        assert client.delete(path, headers=TOKEN).status_code == 204
        assert client.delete(path, headers=TOKEN).status_code == 404
        assert id not in ids(client) and len(ids(client)) == 9
        assert other.put(path, json=new, headers=TOKEN).status_code == 405, "a server without a token is read-only"
        bad = client.put("/entities/Q5", json={**new, "images": [in_base64(b"no image")]}, headers=TOKEN)
        assert bad.status_code == 422 and client.get("/entities/Q5").json()["images"] == 0


def test_explanations_are_those_of_the_linker(tmp_path):
    knowledge_base(tmp_path)
    linker = opened(tmp_path)
    with TestClient(create_app(linker)) as client:
        body = {"mention": {**MENTION, "image": in_base64(png())}, "entity": "Q3"}
        found = client.post("/explain", json=body).json()
        wanted = linker.explain({**MENTION, "image": png()}, "Q3")
        assert found["rank"] == wanted.rank and found["entities"] == 9 and found["entity"]["id"] == "Q3"
        assert {name: (own["score"], own["rank"]) for name, own in found["scores"].items()} == {
            name: (own.score, own.rank) for name, own in wanted.ranking.scores.items()
        }
        assert found["shares"] == wanted.shares and found["gates"] == wanted.gates
        assert [tuple(word) for word in found["words"]] == [(token.text, token.weight) for token in wanted.words]
        assert found["patches"] == wanted.patches.grid.tolist()
        picture = client.post("/explain/picture", json=body)
        assert picture.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(picture.content)).width > 300
        unknown = client.post("/explain", json={**body, "entity": "Q77"})
        assert unknown.status_code == 422 and "Q77" in unknown.json()["detail"]


def test_state_and_pages_need_no_other_host(tmp_path, caplog):
    knowledge_base(tmp_path)
    caplog.set_level("INFO", "mimic_pl.serve.requests")
    with TestClient(create_app(opened(tmp_path))) as client:
        assert client.get("/ready").json()["entities"] == 9
        for page in ("/docs", "/redoc"):
            html = client.get(page).text
            links = re.findall(r'(?:src|href)="([^"]+)"', html)
            assert links and not [link for link in links if "//" in link]
            assert all(client.get(link).status_code == 200 for link in links)
        client.post("/link", json={"mentions": [{"mention": "a secret word"}]})
        client.get("/entities/secret")
    lines = [record.getMessage() for record in caplog.records if record.name == "mimic_pl.serve.requests"]
    assert any('"route": "/link", "status": 200' in line for line in lines)
    assert any('"route": "/entities/{id:path}", "status": 404' in line for line in lines)
    assert "secret" not in " ".join(lines)


def test_an_entity_of_a_request_is_the_same_as_one_of_a_file(tmp_path):
    """After a history of changes through the server, links are those of a new index of the same entities."""
    knowledge_base(tmp_path)
    with TestClient(create_app(opened(tmp_path), token="secret")) as client:
        for n in (1, 4, 20, 21):
            entity = {"name": f"amazon {n}", "fields": {"attr": "a river", "type": "river"}}
            assert client.put(f"/entities/Q{n}", json=entity, headers=TOKEN).status_code in (200, 201)
        client.delete("/entities/Q0", headers=TOKEN)
        found = client.post("/link", json={"mentions": [MENTION], "top_k": 20}).json()["mentions"][0]["candidates"]
    linker = opened(tmp_path)
    kb = linker.knowledge_base
    order = kb.where("id != ''")
    entities: list[Entity] = kb.entities(order)
    Linker(linker.model).index(entities, tmp_path / "again", show_progress_bar=False)
    again = linker.with_knowledge_base(tmp_path / "again").link(MENTION, top_k=20)
    assert found == expected(again) and len(found) == 10


def test_images_of_requests_move_with_the_knowledge_base(tmp_path):
    knowledge_base(tmp_path)
    image = png((30, 20), (10, 180, 90))
    with TestClient(create_app(opened(tmp_path), token="secret")) as client:
        for color in ((1, 2, 3), (10, 180, 90)):  # added, and replaced
            new = {"name": "jaguar", "fields": {"attr": "a car"}, "images": [in_base64(png((30, 20), color))]}
            assert client.put("/entities/N1", json=new, headers=TOKEN).status_code in (200, 201)
    (tmp_path / "kb").rename(tmp_path / "elsewhere")
    linker = Linker.from_pretrained(tmp_path / "model", "cpu").with_knowledge_base(tmp_path / "elsewhere")
    (kept,) = linker.knowledge_base.known(["N1"])["N1"].images
    assert Path(kept).read_bytes() == image and Path(kept).is_relative_to(tmp_path / "elsewhere")
    with TestClient(create_app(linker, token="secret")) as client:
        thumbnail = Image.open(io.BytesIO(client.get("/thumbnails/N1").content))
        assert thumbnail.size == (30, 20) and thumbnail.getpixel((9, 9)) == (10, 180, 90)
        assert client.put("/entities/N2", json={**new, "name": "river"}, headers=TOKEN).status_code == 201
    assert linker.explain(MENTION, "N1").entity_image.size == (30, 20)
    assert linker.with_knowledge_base(tmp_path / "elsewhere").knowledge_base.verify() == []
