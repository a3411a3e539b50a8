"""OpenRefine itself reconciles a column, and fetches another one from the knowledge base."""

from __future__ import annotations

import http.cookiejar
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from mimic_pl import Linker
from tests import tiny
from tests.launch import free_port
from tests.serve.parts import KINDS, knowledge_base
from tests.serve.server_process import Server

pytest.importorskip("fastapi_offline")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.own_process,
    pytest.mark.skipif(shutil.which("openrefine") is None, reason="OpenRefine is not installed (Debian: openrefine)"),
]

CELLS = ["jaguar", "amazon", "", "no such name"]


class OpenRefine:
    """OpenRefine with a data folder of its own, and the commands that its web page sends."""

    def __init__(self, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "openrefine.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["openrefine", "-p", str(self.port), "-d", str(folder / "openrefine"), "-m", "512M",
                 "-x", "refine.headless=true"],
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "HOME": str(folder), "REFINE_MIN_MEMORY": "256M"},
            )  # fmt: skip
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def __enter__(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("get-version")
                return self
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.output())

    def __exit__(self, *error):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)

    def output(self):
        return self.log.read_text()

    def get(self, command, **parameters):
        address = f"{self.url}/command/core/{command}?{urllib.parse.urlencode(parameters)}"
        with self.opener.open(address, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, command, fields=(), content=None, content_type=None, **parameters):
        parameters["csrf_token"] = self.get("get-csrf-token")["token"]
        address = f"{self.url}/command/core/{command}?{urllib.parse.urlencode(parameters)}"
        content = urllib.parse.urlencode(dict(fields)).encode() if content is None else content
        headers = {} if content_type is None else {"Content-Type": content_type}
        return self.opener.open(urllib.request.Request(address, content, headers), timeout=60)

    def project(self, table):
        """The number of a new project with a table in CSV."""
        parts = {
            'name="project-name"': "cells",
            'name="options"': '{"separator": ",", "storeBlankCellsAsNulls": false}',
            'name="format"': "text/line-based/*sv",
            'name="project-file"; filename="cells.csv"': table,
        }
        form = "".join(f"--x\r\nContent-Disposition: form-data; {k}\r\n\r\n{v}\r\n" for k, v in parts.items())
        made = self.post(
            "create-project-from-upload", (), f"{form}--x--\r\n".encode(), "multipart/form-data; boundary=x"
        )
        return made.url.rpartition("project=")[2]

    def change(self, command, project, **fields):
        """Change a project, and wait until that is done."""
        with self.post(command, fields, project=project) as answer:
            said = json.loads(answer.read())
        assert said["code"] in ("ok", "pending"), said
        deadline = time.monotonic() + 120
        while self.get("get-processes", project=project)["processes"]:
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)

    def table(self, project):
        """Rows, and what is known about their cells."""
        with self.post("get-rows", {"engine": "{}"}, project=project, start=0, limit=100) as answer:
            found = json.loads(answer.read())
        return found["rows"], found["pool"]["recons"]


def test_openrefine_reconciles_a_column(tmp_path):
    knowledge_base(tmp_path)
    linker = Linker.from_pretrained(tmp_path / "model", "cpu").with_knowledge_base(tmp_path / "kb")
    with Server(tmp_path, "--host", "127.0.0.1") as server, OpenRefine(tmp_path) as refine:
        service = f"{server.url}/reconcile"
        with urllib.request.urlopen(service) as answer:
            manifest = json.loads(answer.read())
        spaces = {space: manifest[space] for space in ("identifierSpace", "schemaSpace")}
        table = "cell,kind\n" + "".join(f'"{cell}",a river\n' for cell in CELLS)
        project = refine.project(table)

        with refine.post(
            "guess-types-of-column", {"columnName": "cell", "service": service}, project=project
        ) as answer:
            guessed = json.loads(answer.read())
        assert guessed["code"] == "ok" and {each["id"] for each in guessed["types"]} <= {*KINDS} and guessed["types"]

        column = {"column": "kind", "property": {"id": "attr", "name": "attr"}}
        settings = {"mode": "standard-service", "service": service, **spaces, "autoMatch": True, "limit": 3,
                    "columnDetails": [column], "type": {"id": KINDS[2], "name": KINDS[2]}}  # fmt: skip
        refine.change("reconcile", project, columnName="cell", config=json.dumps(settings), engine="{}")
        rows, recons = refine.table(project)
        for cell, row in zip(CELLS, rows, strict=True):
            value = row["cells"][0] or {}
            if not cell:
                assert "r" not in value
                continue
            record = {"mention": cell, "sentence": f"{cell}, a river", "entity_type": KINDS[2]}
            links = linker.link(record)[:3]
            recon = recons[str(value["r"])]
            if recon["j"] == "matched":  # the only one of that name; others are no longer told
                assert [recon["m"]["id"]] == [link.entity.id for link in links if link.entity.name == cell]
                continue
            assert [(each["id"], each["name"]) for each in recon["c"]] == [(e.entity.id, e.entity.name) for e in links]
            assert [each["score"] for each in recon["c"]] == pytest.approx([each.score for each in links])
            assert all(each["types"] == [KINDS[2]] for each in recon["c"])
        recon = recons[str(rows[-1]["cells"][0]["r"])]
        assert recon["j"] == "none", "nothing has that name"

        judged = {"row": len(CELLS) - 1, "cell": 0, "judgment": "matched", **spaces, "service": service}
        best = recon["c"][0]
        match = {"id": best["id"], "name": best["name"], "types": KINDS[2]}
        refine.change("recon-judge-one-cell", project, **judged, **match)
        wanted = {"properties": [{"id": "attr", "name": "attr"}, {"id": "type", "name": "type"}]}
        refine.change(
            "extend-data", project, baseColumnName="cell", endpoint=service, **spaces, columnInsertIndex="1",
            extension=json.dumps(wanted), engine="{}",
        )  # fmt: skip
        entity = linker.knowledge_base.known([best["id"]])[best["id"]]
        values = [(cell or {}).get("v") for cell in refine.table(project)[0][-1]["cells"]]
        assert entity.fields["attr"] in values and entity.fields["type"] in values
        assert best["name"] in tiny.NAMES
        lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
        assert {line["status"] for line in lines if line["route"].startswith("/reconcile")} == {200}
