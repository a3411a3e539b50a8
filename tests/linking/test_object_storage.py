"""A knowledge base that was copied to object storage is read there like the folder; nothing is written there."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mimic_pl import KnowledgeBase, Linker
from mimic_pl.cli import main
from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.linking.thumbnails import first_thumbnail
from mimic_pl.model_folder import save_folder
from mimic_pl.processor.images import ImageError, open_image
from mimic_pl.ranking.lance_index import LanceIndex
from mimic_pl.records import Entity
from mimic_pl.remote_path import RemotePath, folder_at
from tests.knowledge_base.parts import add, content, created, record
from tests.linking.test_linker import ENTITIES, model_of
from tests.object_storage import BUCKET, KEYS, S3Server

pytestmark = pytest.mark.own_process

MENTIONS = [{"mention": word, "sentence": f"the {word} runs"} for word in ("jaguar", "amazon", "river")]


@pytest.fixture(scope="module")
def server():
    with S3Server() as server:
        server.client.create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["AWS_ENDPOINT_URL"])
def s3(server, monkeypatch, request):
    """The server, which the environment names."""
    monkeypatch.setenv(request.param, server.url)
    return server


def found(linker, **options):
    return [[(link.entity, link.score, link.units) for link in links] for links in linker.link(MENTIONS, **options)]


@pytest.mark.parametrize("s3", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"], indirect=True)
def test_a_copy_has_the_same_content_in_all_versions(tmp_path, s3):
    folder = tmp_path / "kb"
    first = created(folder, *[record(f"Q{n}", n, type=["city", "person"][n % 2]) for n in range(30)])
    kb = add(first.delete(["Q3", "Q4"]), record("new", 2)).set_statistics("x", {"a": torch.arange(3).numpy(), "b": [1]})
    address = s3.copy(folder, tmp_path.name)
    copied = KnowledgeBase(address)
    assert content(copied) == content(kb) and str(copied.folder) == address and len(copied) == 29
    assert content(KnowledgeBase(address, version=first.version)) == content(first)
    assert copied.versions() == kb.versions() and copied.description == kb.description
    assert copied.bytes_on_disk == kb.bytes_on_disk and copied.parts == kb.parts
    assert copied.statistics("x")["a"].tolist() == [0, 1, 2] and copied.statistics("x")["b"] == [1]
    assert first.statistics("x") is None and KnowledgeBase(address, version=first.version).statistics("x") is None
    for condition in ("type = 'city'", "name like '%Q1%' and type = 'person'", "type is null"):
        assert torch.equal(copied.where(condition), kb.where(condition))
    assert copied.values("type") == kb.values("type") and copied.order_of(["new"]) == kb.order_of(["new"])
    assert copied.verify() == []
    assert LanceIndex(address).order.tolist() == kb.index.order.tolist()
    with pytest.raises(StoreError, match="has no version 99. Its newest version is"):
        KnowledgeBase(address, version=99)


def test_links_are_those_of_the_folder(tmp_path, s3, monkeypatch):
    linker = Linker(model_of())
    linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)
    local = linker.with_knowledge_base(tmp_path / "kb")
    retrieved = found(local.with_retriever("lance", k=3), top_k=2)
    address = s3.copy(tmp_path / "kb", tmp_path.name)
    remote = linker.with_knowledge_base(address)
    assert found(remote) == found(local)
    assert found(remote, filter="type = 'river'") == found(local, filter="type = 'river'")
    with monkeypatch.context() as patch:
        patch.setattr("mimic_pl.linking.candidates._RESIDENT_ON_CPU", 0)  # in blocks
        assert found(linker.with_knowledge_base(address)) == found(local)
    explained = remote.explain(MENTIONS[0], "Q2")
    assert explained.ranking.scores == local.explain(MENTIONS[0], "Q2").ranking.scores
    assert found(remote.with_retriever("lance", k=3), top_k=2) == retrieved
    with pytest.raises(StoreError, match="has no candidates of the retriever 'lance' for its version"):
        local.delete_entities(["Q1"])
        shutil.rmtree(tmp_path / "kb" / "candidates")
        linker.with_knowledge_base(s3.copy(tmp_path / "kb", tmp_path.name)).with_retriever("lance")


def test_commands(tmp_path, s3, capsys):
    linker = Linker(model_of())
    save_folder(linker.model, tmp_path / "model")
    linker = Linker.from_pretrained(tmp_path / "model", "cpu")
    linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)
    address = s3.copy(tmp_path / "kb", tmp_path.name)
    assert found(Linker.from_knowledge_base(address)) == found(linker.with_knowledge_base(tmp_path / "kb"))
    (tmp_path / "mentions.csv").write_text("mention,sentence\njaguar,the jaguar\namazon,the amazon\n")
    for name, kb in (("local", str(tmp_path / "kb")), ("remote", address)):
        out = tmp_path / f"{name}.jsonl"
        assert not main(["link", str(tmp_path / "mentions.csv"), "--kb", kb, "--out", str(out), "--device", "cpu"])
    assert (tmp_path / "remote.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    capsys.readouterr()
    texts = []
    for kb in (str(tmp_path / "kb"), address):
        assert not main(["kb", "info", kb]) and not main(["kb", "verify", kb])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "9 entities is intact" in texts[0]
    for args in (["compact"], ["delete", "Q1"], ["add", "x.csv"], ["update", "x.csv"]):
        with pytest.raises(SystemExit) as end:
            main(["kb", args[0], address, *args[1:]])
        assert end.value.code == 7 and f"{address} can only be read" in capsys.readouterr().err
    os.environ["MIMIC_TOKEN"] = "secret"
    for command in (["serve", "--kb", address, "--writable"], ["index", "x.csv", "--model", "none", "--out", address]):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 7 and f"{address} can only be read" in capsys.readouterr().err


def test_the_server_reads_it(tmp_path, s3):
    pytest.importorskip("fastapi_offline", reason="the extra 'serve' is not installed")
    from fastapi.testclient import TestClient

    from mimic_pl.serve.app import create_app

    linker = Linker(model_of())
    folder = tmp_path / "kb"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 20), (200, 10, 10)).save(folder / "images" / "a.png")
    linker.index([{**ENTITIES[0], "image": str(folder / "images" / "a.png")}, *ENTITIES[1:]], folder)
    linker = linker.with_knowledge_base(s3.copy(folder, tmp_path.name))
    with TestClient(create_app(linker)) as client:
        links = client.post("/link", json={"mentions": MENTIONS[:1]}).json()
        assert links["mentions"][0]["candidates"][0]["score"] == found(linker)[0][0][1]
        assert client.get("/thumbnails/Q0").status_code == 200 and client.get("/thumbnails/Q1").status_code == 404
        assert client.get("/ready").status_code == 200
    with TestClient(create_app(linker, token="t"), raise_server_exceptions=False) as client:
        answer = client.delete("/entities/Q1", headers={"Authorization": "Bearer t"})
        assert answer.status_code >= 400 and "can only be read" in answer.text


def test_images_in_its_own_folder(tmp_path, s3):
    folder = tmp_path / "kb"
    (folder / "images").mkdir(parents=True)
    image = Image.new("RGB", (40, 20), (200, 10, 10))
    image.save(folder / "images" / "a b.png")
    own = Entity("A", "A", {"group": "0"}, (str(folder / "images" / "a b.png"),))
    missing = Entity("B", "B", {"group": "0"}, (str(folder / "images" / "none.png"), "/elsewhere.png"))
    created(folder, own, missing)
    address = s3.copy(folder, tmp_path.name)
    with_image, without = KnowledgeBase(address).entities(torch.tensor([0, 1]))
    assert with_image.images == (RemotePath(f"{address}/images/a b.png"),) and without.images[1] == "/elsewhere.png"
    assert open_image(with_image.images[0]).tobytes() == image.tobytes()
    assert first_thumbnail(with_image.images).size == (40, 20) and first_thumbnail(without.images) is None
    with pytest.raises(ImageError, match="missing: no such file"):
        open_image(without.images[0])
    with pytest.raises(ImageError, match="missing"):  # an address in a record is a path
        open_image(f"{address}/images/a b.png")


def test_nothing_is_written(tmp_path, s3):
    address = s3.copy(created(tmp_path / "kb", record("A")).folder, tmp_path.name)
    before = sum(1 for _ in RemotePath(address).sizes(recursive=True))
    kb = KnowledgeBase(address)
    linker = Linker(model_of())
    for change in (
        lambda: add(kb, record("B")),
        lambda: kb.delete(["A"]),
        kb.compact,
        kb.indexing,
        lambda: kb.set_statistics("x", {}),
        lambda: KnowledgeBase.create(f"s3://{BUCKET}/other", {}),
        lambda: linker.index(ENTITIES, f"s3://{BUCKET}/other"),
    ):
        with pytest.raises(StoreError, match="can only be read: .* in a local folder, and copy that there again"):
            change()
    assert len(RemotePath(address).sizes(recursive=True)) == before
    assert not RemotePath(f"s3://{BUCKET}/other").exists()


def test_readers_follow_a_copied_change(tmp_path, s3):
    folder = tmp_path / "kb"
    kb = created(folder, *[record(f"Q{n}", n) for n in range(5)])
    address = s3.copy(folder, tmp_path.name)
    reader = KnowledgeBase(address)
    before = content(kb)
    changed = add(kb.delete(["Q2"]), record("new"))
    versions = folder / "_versions"
    shutil.move(versions, tmp_path / "kept")
    s3.copy(folder, tmp_path.name)
    assert KnowledgeBase(address).version == reader.version and content(reader) == before
    shutil.move(tmp_path / "kept", versions)
    s3.copy(folder, tmp_path.name)
    assert content(KnowledgeBase(address)) == content(changed) and content(reader) == before


def test_missing_and_damaged(tmp_path, s3):
    folder = tmp_path / "kb"
    kb = created(folder, *[record(f"Q{n}", n) for n in range(5)]).set_statistics("x", {"a": 1})
    address = s3.copy(folder, tmp_path.name)
    reader = KnowledgeBase(address)
    with pytest.raises(StoreError, match="NO_SUCH_BUCKET.*Check the address, the network, and the environment"):
        KnowledgeBase("s3://no-such-bucket/kb")
    with pytest.raises(StoreError, match="contains no knowledge base. Check the path, or copy one there"):
        KnowledgeBase(f"s3://{BUCKET}/nothing-here")
    (statistics,) = (folder / "statistics").iterdir()
    key = f"{tmp_path.name}/statistics/{statistics.name}"
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=statistics.read_bytes()[:-1])
    with pytest.raises(StoreError, match="cannot be read: its content fails its checksum"):
        reader.statistics("x")
    (data,) = (folder / "data").iterdir()
    s3.client.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/data/{data.name}", Body=data.read_bytes()[:-9])
    with pytest.raises(StoreError, match="it was truncated or replaced"):
        KnowledgeBase(address).entities(torch.tensor([0]))
    s3.client.delete_object(Bucket=BUCKET, Key=f"{tmp_path.name}/data/{data.name}")
    with pytest.raises(StoreError, match=f"{data.name} is missing"):
        KnowledgeBase(address).entities(torch.tensor([0]))
    assert any("is missing" in problem for problem in reader.verify())
    assert content(kb)


def test_wrong_keys(tmp_path, monkeypatch):
    with S3Server(**{**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(StoreError, match="INVALID_ACCESS_KEY_ID.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            KnowledgeBase(f"s3://{BUCKET}/kb")


def test_no_keys(tmp_path, s3, monkeypatch):
    address = s3.copy(created(tmp_path / "kb", record("A")).folder, tmp_path.name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="Failed to get AWS credentials.*AWS_ACCESS_KEY_ID"):
        KnowledgeBase(address)


def test_a_server_that_is_gone(tmp_path, server, monkeypatch):
    address = server.copy(created(tmp_path / "kb", record("A")).folder, tmp_path.name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StoreError, match="NETWORK_CONNECTION.*Check the address, the network"):
        KnowledgeBase(address)
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_server_that_never_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(StoreError, match="NETWORK_CONNECTION.*Check the address, the network"):
            KnowledgeBase(f"s3://{BUCKET}/kb")
        assert time.monotonic() - start < 90


@pytest.mark.parametrize("name", ["s3", "50% [x] #1?", "a:b", "s3:", "C:kb", "gs:"])
def test_odd_names_of_local_folders(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    kb = created(Path(name), record("A"))
    for given in (name, Path(name), str(tmp_path / name)):
        assert isinstance(folder_at(given), Path) and content(KnowledgeBase(given)) == content(kb)


@pytest.mark.parametrize(
    "address", ["gs://bucket/kb", "az://kb", "hf://datasets/a/b", "http://x/kb", "s3://", "s3:///kb"]
)
def test_other_addresses(address):
    with pytest.raises(ConfigError, match="is no folder that can be read: give a local one, or .* s3://BUCKET/FOLDER"):
        KnowledgeBase(address)
