"""A real Milvus server: the same as with the embedded one, and what only a server can do: be down, lag, be killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mimic_pl import Linker
from mimic_pl.errors import ConfigError, MimicError
from mimic_pl.retrieval import MilvusRetriever
from mimic_pl.retrieval.milvus_store import MilvusStore
from tests.retrieval.engines import ENTITIES, entities, indexed, mentions, model_of, queries_of
from tests.retrieval.test_retrievers import assert_equals_knowledge_base, ids, overall

pytestmark = pytest.mark.slow

_STARTED = 120.0
"""Seconds that a server may take to start."""

SERVER = """
import sys, time
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
server.start()
print("port", server.listen_port, flush=True)
while True:
    time.sleep(1)
"""


class Server:
    """The server of PyPI's ``milvus``, on loopback."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-c", SERVER, str(self.folder), str(self.port)]
        self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        line = self.parent.stdout.readline()
        assert line.startswith("port "), f"the Milvus server did not start: {line}"
        self.port = int(line.split()[1])  # another one if that of a killed server is not free yet

    def kill(self):
        if self.parent.poll() is None:
            os.killpg(self.parent.pid, signal.SIGKILL)
            self.parent.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus", reason="the server is that of pip install milvus==2.3.5")
    server = Server(tmp_path_factory.mktemp("milvus"))
    yield server
    server.kill()


def on(server, **options):
    return MilvusRetriever(uri=server.uri, **options)


def test_links_conditions_and_changes(tmp_path, server):
    exact = indexed(tmp_path, ENTITIES)
    everything = exact.with_retriever(on(server, k=ENTITIES))
    for one, other in zip(exact.link(mentions(), ENTITIES), everything.link(mentions(), ENTITIES), strict=True):
        assert overall(one) == overall(other)
    linker = exact.with_retriever(on(server, k=12, index="HNSW"))
    rare = {entity["id"] for entity in entities() if entity["type"] == "rare"}
    for conditions in ({"entity_type": "rare"}, {"filter": "type = 'rare'"}):
        for record in mentions():
            found = ids(linker.link({**record, **conditions}, top_k=5))
            assert len(found) == 5 and {*found} <= rare
    opened = on(server).at(linker.knowledge_base, linker.model)
    query = linker.model.matcher.query_vectors(queries_of(linker, mentions()).states).detach().numpy()
    allowed = linker._candidates.allowed
    from mimic_pl.linking.mention_records import Restriction

    for found in opened._vectors.nearest(query, 10, allowed(Restriction("rare"))):
        assert len(found) == 10
    linker.add_entities([{"id": "new", "name": "zebra quagga", "attr": "striped", "type": "it's \"odd\\"}])
    record = {"mention": "zebra quagga", "sentence": "a zebra", "entity_type": "it's \"odd\\"}
    assert ids(linker.link(record)) == ["new"]
    linker.delete_entities(["new", *(f"Q{n}" for n in range(0, 100, 2))])
    linker.update_entities([{**entities()[1], "attr": "other"}])
    assert_equals_knowledge_base(on(server, index="HNSW").at(linker.knowledge_base, linker.model))


def test_a_killed_server_comes_back_and_a_lagging_collection_catches_up(tmp_path, server):
    linker = indexed(tmp_path, 80)
    on(server, collection="kept").at(linker.knowledge_base, linker.model)
    server.kill()
    linker.update_entities([{**entities()[3], "attr": "changed while it was down"}])
    started = time.monotonic()
    with pytest.raises(ConfigError, match="cannot be reached"):
        on(server, timeout=3).at(linker.knowledge_base, linker.model)
    assert time.monotonic() - started < 60
    server.start()
    while True:  # it answers before it has loaded everything
        try:
            opened = on(server, collection="kept").at(linker.knowledge_base, linker.model)
            break
        except MimicError:
            assert time.monotonic() - started < _STARTED
            time.sleep(1)
    assert_equals_knowledge_base(opened)


def test_killed_while_it_catches_up_a_collection_says_that_it_lags(tmp_path, server, monkeypatch):
    linker = indexed(tmp_path, 60)
    kb, add = linker.knowledge_base, MilvusStore.add

    def partly(self, rows):
        half = len(rows.order) // 2
        add(self, rows._replace(**{name: getattr(rows, name)[:half] for name in rows._fields}))
        raise KeyboardInterrupt

    monkeypatch.setattr(MilvusStore, "add", partly)
    with pytest.raises(KeyboardInterrupt):
        on(server).at(kb, linker.model)
    monkeypatch.undo()
    store = on(server).at  # what is there is not taken for the version
    lagging = MilvusStore(kb.folder, 48, server.uri)
    assert lagging.version is None and 0 < len(lagging) < 60
    opened = store(kb, linker.model)
    assert_equals_knowledge_base(opened)
    assert opened._vectors.version == kb.version
    vectors = np.ones((1, opened._vectors.width), np.float32)
    assert len(opened._vectors.nearest(vectors, 60, None)[0]) == 60
    again = Linker(model_of()).with_knowledge_base(kb).with_retriever(on(server, k=10))
    assert len(again.link(mentions()[0], top_k=4)) == 4 and torch.is_grad_enabled()
