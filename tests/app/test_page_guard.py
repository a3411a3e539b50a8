"""The page answers its own requests and no others, and asks no other host."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio")
from starlette.testclient import TestClient

from mimic_pl.app.page import create_app, create_page, is_local
from mimic_pl.serve.limits import Limits
from tests.app.parts import actions, data_uri, opened, png

JOIN = "/gradio_api/queue/join"


def client_of(app) -> TestClient:
    return TestClient(app, "http://localhost")


@pytest.mark.own_process
def test_only_the_routes_of_the_page_are_open(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with client_of(create_app(actions(opened(tmp_path)))) as client:
        page = client.get("/")
        assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
        assert client.get("/config").status_code == client.get("/theme.css").status_code == 200
        for path in (
            f"/gradio_api/file={secret}",
            f"/gradio_api/file/{secret}",
            "/gradio_api/proxy=http://localhost/",
            "/gradio_api/call/link/1",
            "/gradio_api/openapi.json",
            "/monitoring",
            "/docs",
            "/nowhere",
        ):
            assert client.get(path).status_code == 404, path
        for path in ("/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/call/link", "/login"):
            assert client.post(path, json={"data": []}).status_code == 404, path
        assert client.put("/").status_code == 404
        assert client.get("/", headers={"Host": "rebound.example"}).status_code == 400
    with TestClient(create_app(actions(opened(tmp_path)), host="0.0.0.0"), "http://page.example") as client:
        assert client.get("/").status_code == 200, "whoever listens on all addresses may have any name"


@pytest.mark.own_process
def test_values_are_texts_and_numbers_within_limits(tmp_path):
    limits = Limits(body=200_000)
    with client_of(create_app(actions(opened(tmp_path), limits=limits))) as client:
        file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        address = {"path": "http://localhost/", "meta": {"_type": "gradio.FileData"}}
        for data in ([file], ["a", address], [[file]], {"a": file}, None):
            refused = client.post(JOIN, json={"data": data, "fn_index": 0, "session_hash": "a"})
            assert refused.status_code == 422 and refused.json()["detail"].startswith("The values"), data
        assert client.post(JOIN, content=b"no JSON").status_code == 422
        large = client.post(JOIN, json={"data": ["x" * 200_000], "fn_index": 0, "session_hash": "a"})
        assert large.status_code == 413 and "larger than 200,000 bytes" in large.json()["detail"]
        accepted = {"data": ["the jaguar", "jaguar", 4, data_uri(png())], "fn_index": 1, "session_hash": "a"}
        assert "event_id" in client.post(JOIN, json=accepted).json()


@pytest.mark.own_process
def test_nothing_comes_from_another_host(tmp_path):
    app = actions(opened(tmp_path))
    assert not create_page(app).analytics_enabled
    with client_of(create_app(app)) as client:
        assert "fonts.g" not in client.get("/").text + client.get("/theme.css").text
        config = client.get("/config").json()
    assert config["analytics_enabled"] is False and not config.get("stylesheets")
    labels = [part["props"].get("label") for part in config["components"]]
    assert "Add" not in labels and "Errors" not in labels and "Compare" not in labels
    config = json.loads(json.dumps(create_page(app, writable=True).get_config_file(), default=str))
    assert "Add" in [part["props"].get("label") for part in config["components"]]


def test_addresses_that_only_this_machine_reaches():
    assert all(map(is_local, ("localhost", "127.0.0.1", "127.0.1.1", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
