"""A server that is killed while clients change its knowledge base has lost nothing that it had acknowledged."""

from __future__ import annotations

import base64
import io
import json
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image

from tests.launch import environment
from tests.serve.parts import knowledge_base
from tests.serve.server_process import BEARER, Server

pytest.importorskip("fastapi_offline")

pytestmark = [pytest.mark.slow, pytest.mark.own_process]

CLIENTS, IDS = 4, 3
ROUNDS = 3


def content(number):
    """The entity after its ``number``-th change: everything about it tells the number."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(image, "PNG")
    image = base64.b64encode(image.getvalue()).decode()
    return {"name": f"jaguar {number}", "fields": {"attr": f"a car {number}"}, "images": [image]}


def asked(server, method, path, body=None):
    """Status and content of an answer; None if there was none."""
    content = None if body is None else json.dumps(body).encode()
    headers = {**BEARER, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}{path}", content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, ValueError, EOFError):
        return None, b""


class Client(threading.Thread):
    """Changes entities of its own, one after another, until the server is gone.

    ``states`` has what each may be: the number of its content, or None if it was deleted; two of them if the last
    change was not acknowledged.
    """

    def __init__(self, server, number, states, seed):
        super().__init__()
        self.server, self.number, self.states, self.rng = server, number, states, random.Random(seed)
        self.changes = 0

    def run(self):
        while True:
            id = f"C{self.number}-{self.rng.randrange(IDS)}"
            (before,) = self.states[id]
            delete = before is not None and self.rng.random() < 0.3
            after = None if delete else self.rng.randrange(1 << 16)
            self.states[id] = {before, after}
            body = None if delete else content(after)
            status, _ = asked(self.server, "DELETE" if delete else "PUT", f"/entities/{id}", body)
            if status is None:
                return
            assert status == (204 if delete else 201 if before is None else 200), status
            self.states[id] = {after}
            self.changes += 1


def found(server, id):
    """The number of an entity's content, or None; everything about it has to agree."""
    status, answer = asked(server, "GET", f"/entities/{id}")
    if status == 404:
        return None
    entity = json.loads(answer)
    number = int(entity["name"].removeprefix("jaguar "))
    assert entity["fields"]["attr"] == f"a car {number}" and entity["images"] == 1
    _, thumbnail = asked(server, "GET", f"/thumbnails/{id}")
    assert Image.open(io.BytesIO(thumbnail)).getpixel((3, 3)) == (number % 256, number // 256, 7)
    return number


def test_what_was_acknowledged_is_there(tmp_path):
    knowledge_base(tmp_path)
    states = [{f"C{number}-{n}": {None} for n in range(IDS)} for number in range(CLIENTS)]
    rng, changes = random.Random(5), 0
    for round_ in range(ROUNDS + 1):
        with Server(tmp_path, "--writable") as server:
            for own in states:
                for id, possible in own.items():
                    number = found(server, id)
                    assert number in possible, f"{id} is {number} and not one of {possible} (round {round_})"
                    own[id] = {number}
            mentions = {"mentions": [{"mention": "jaguar", "sentence": "a car"}], "top_k": 100}
            _, answer = asked(server, "POST", "/link", mentions)
            linked = {each["id"] for each in json.loads(answer)["mentions"][0]["candidates"]}
            alive = {id for own in states for id, possible in own.items() if possible != {None}}
            assert linked == alive | {f"Q{n}" for n in range(9)}
            if round_ == ROUNDS:
                break
            clients = [Client(server, n, own, rng.random()) for n, own in enumerate(states)]
            for client in clients:
                client.start()
            time.sleep(rng.uniform(1, 4))
            server.process.kill()
            for client in clients:
                client.join(120)
            changes += sum(client.changes for client in clients)
        verified = subprocess.run(
            [sys.executable, "-m", "mimic_pl", "kb", "verify", str(tmp_path / "kb")],
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert changes > 10 * ROUNDS
    print(f"{changes} changes acknowledged, {ROUNDS} kills")
