"""``mimic-pl serve`` as a process of its own: the lines of the README, several workers, and its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.launch import environment
from tests.readme import readme_block
from tests.serve.parts import knowledge_base
from tests.serve.server_process import BEARER, Server

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi_offline")

pytestmark = [pytest.mark.slow, pytest.mark.own_process]

MENTIONS = {"mentions": [{"mention": "jaguar", "sentence": "the jaguar"}]}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_readme(tmp_path):
    knowledge_base(tmp_path)
    (tmp_path / "data/Demo/mention_images").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "data/Demo/mention_images/test-0.jpg")
    install, serve, *requests = readme_block('pip install "mimic-pl[serve]"').strip().splitlines()
    assert serve == "mimic-pl serve --kb my_kb" and len(requests) == 2 and "pip install" in install
    with Server(tmp_path) as server:
        for request in requests:
            request = request.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
            shown = subprocess.run(request, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
            (mention,) = json.loads(shown.stdout)["mentions"]
            assert mention["mention"] == "Dunford" and len(mention["candidates"]) == 9 and not mention["error"]
    lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    assert [line["route"] for line in lines if line["status"] == 200][-2:] == ["/link", "/link/upload"]
    assert "Dunford" not in server.output()


def test_requests_in_flight_are_answered_at_the_end(tmp_path):
    knowledge_base(tmp_path)
    with Server(tmp_path) as server, ThreadPoolExecutor(30) as pool:
        many = {"mentions": MENTIONS["mentions"] * 100}
        answers = [pool.submit(httpx.post, f"{server.url}/link", json=many, timeout=60) for _ in range(30)]
        received = 0
        while received < 5:
            assert not all(answer.done() for answer in answers)
            waiting = re.search(r"mimic_waiting_mentions ([\d.]+)", httpx.get(f"{server.url}/metrics").text)
            received = int(float(waiting[1])) // 100
        server.process.send_signal(signal.SIGTERM)
        found = []
        for answer in answers:
            try:
                found.append(answer.result())
            except httpx.TransportError:  # the server had not accepted its connection yet
                continue
        linked = [each.json()["mentions"] for each in found if each.status_code == 200]
        assert len(linked) >= received and all(len(mentions) == 100 for mentions in linked)
        assert {each.status_code for each in found} <= {200, 503}
        assert server.process.wait(60) in (0, -signal.SIGTERM), server.output()
        assert "Traceback" not in server.output()


def test_several_workers_share_a_knowledge_base(tmp_path):
    knowledge_base(tmp_path)
    with (
        Server(tmp_path, "--workers", "2", "--writable") as server,
        ThreadPoolExecutor(8) as pool,
    ):

        def link(_):
            with httpx.Client(timeout=60) as client:  # a connection of its own, which any worker may accept
                return client.post(f"{server.url}/link", json=MENTIONS).json()["mentions"][0]["candidates"]

        before = list(pool.map(link, range(40)))
        assert all(each == before[0] for each in before) and len(before[0]) == 9
        new = {"name": "jaguar", "fields": {"attr": "a car"}}
        for number in range(4):
            assert (
                httpx.put(f"{server.url}/entities/N{number}", json=new, headers=BEARER, timeout=60).status_code == 201
            )
        time.sleep(1.5)
        after = list(pool.map(link, range(40)))
        assert all({"N0", "N3"} <= {each["id"] for each in found} for found in after)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert re.search(r'mimic_links_total\{outcome="linked"\} 80.0', metrics), metrics
        assert "mimic_entities 13.0" in metrics and "mimic_waiting_mentions 0.0" in metrics
        many = {"mentions": MENTIONS["mentions"] * 100}
        answers = [pool.submit(httpx.post, f"{server.url}/link", json=many, timeout=60) for _ in range(8)]
        seen = set()
        while not all(answer.done() for answer in answers):
            seen.add(re.search(r"mimic_waiting_mentions (\d+)", httpx.get(f"{server.url}/metrics").text)[1])
        assert seen - {"0"} and {int(each) % 100 for each in seen} == {0}, seen


def test_without_a_token_nothing_is_writable(tmp_path):
    command = [sys.executable, "-m", "mimic_pl", "serve", "--kb", str(tmp_path), "--writable"]
    variables = {name: value for name, value in {**os.environ, **environment()}.items() if name != "MIMIC_TOKEN"}
    refused = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert refused.returncode == 3 and "set the environment variable MIMIC_TOKEN to a secret" in refused.stderr
