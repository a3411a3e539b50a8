"""A small HTTP server that imitates the endpoints of the Hugging Face hub that a push and a download use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeHub:
    """Models by name: files by path, of one commit each.

    Attributes:
        models: Content of the files by path, for each model.
        private: Names of private models.
        requests: Method, path and number of bytes of every request.
    """

    def __init__(self):
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[tuple[str, str, int]] = []
        self.uploaded: dict[str, bytes] = {}

    def stop(self):
        """Refuse connections, until :meth:`restart`."""
        self.server.shutdown()
        self.server.server_close()

    def commit(self, name):
        digest = hashlib.sha1()
        for path, content in sorted(self.models[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@contextmanager
def serve():
    """Run the server on a free port of this machine: the hub and its address."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *args):
            pass

        def answer(self, code, body=b"", headers=None):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            headers = {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, code="RepoNotFound"):
            self.answer(404, {"error": "not found"}, {"X-Error-Code": code, "X-Error-Message": "not found"})

        def do_GET(self):
            url = urlsplit(self.path)
            parts = unquote(url.path).strip("/").split("/")
            hub.requests.append((self.command, url.path, 0))
            if parts[:2] == ["api", "models"]:
                return self.information("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
            name = "/".join(parts[:2])
            if name not in hub.models:
                return self.missing()
            if parts[2] != "resolve":
                return self.answer(500)
            if parts[3] not in ("main", hub.commit(name)):
                return self.missing("RevisionNotFound")
            content = hub.models[name].get("/".join(parts[4:]))
            if content is None:
                return self.missing("EntryNotFound")
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": hub.commit(name)}
            self.answer(200, content, {**headers, "Content-Type": "application/octet-stream"})

        do_HEAD = do_GET

        def information(self, name, rest, query):
            if name not in hub.models:
                return self.missing()
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in ("main", hub.commit(name)):
                return self.missing("RevisionNotFound")
            files = hub.models[name].items()
            if rest and rest[0] == "tree":
                entries = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files
                ]
                return self.answer(200, entries)
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files]
            known = {"id": name, "modelId": name, "sha": hub.commit(name), "siblings": siblings, "tags": []}
            self.answer(200, {**known, "private": name in hub.private})

        def do_POST(self):
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            hub.requests.append((self.command, url.path, len(body)))
            parts = unquote(url.path).strip("/").split("/")
            if url.path == "/api/repos/create":
                return self.create(json.loads(body))
            if url.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if url.path.endswith(".git/info/lfs/objects/batch"):
                objects = [self.upload(own) for own in json.loads(body)["objects"]]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            name = "/".join(parts[2:4])
            if name not in hub.models:
                return self.missing()
            if parts[4] == "preupload":
                modes = [
                    {"path": own["path"], "uploadMode": "lfs" if own["path"].endswith(".safetensors") else "regular"}
                    for own in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": [{**own, "shouldIgnore": False} for own in modes]})
            if parts[4] == "commit":
                return self.change(name, [json.loads(line) for line in body.splitlines()])
            self.answer(500)

        def create(self, wanted):
            name = wanted["name"] if "/" in wanted["name"] else f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            hub.models.setdefault(name, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(name)
            self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})

        def upload(self, wanted):
            target = f"http://{self.headers['Host']}/upload/{wanted['oid']}"
            return {**wanted, "actions": {"upload": {"href": target, "header": {}}}}

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.requests.append((self.command, self.path, len(body)))
            hub.uploaded[hashlib.sha256(body).hexdigest()] = body
            self.answer(200, headers={"ETag": '"1"'})

        def change(self, name, lines):
            files = hub.models[name]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.uploaded[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit = hub.commit(name)
            address = f"http://{self.headers['Host']}/{name}/commit/{commit}"
            self.answer(200, {"success": True, "commitOid": commit, "commitUrl": address})

    def start(port):
        hub.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        hub.server.daemon_threads = True
        threading.Thread(target=hub.server.serve_forever, daemon=True).start()

    start(0)
    port = hub.server.server_port
    hub.restart = lambda: start(port)
    try:
        yield hub, f"http://127.0.0.1:{port}"
    finally:
        hub.stop()
