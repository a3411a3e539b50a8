"""Clients that are slow, leave, or send what hurts cost the server little, and the other clients nothing."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import urllib.request
import zlib
from contextlib import contextmanager, suppress

import pytest
from PIL import Image

from tests.serve.parts import knowledge_base
from tests.serve.server_process import BEARER, Server

pytest.importorskip("fastapi_offline")

pytestmark = [pytest.mark.slow, pytest.mark.own_process]

SECONDS, BODY = 2, 300_000
LIMITS = ("--limits.seconds", str(SECONDS), "--limits.body", str(BODY), "--limits.pixels", "1000000")
PATIENCE = 10
"""Seconds that an answer may take on a busy machine."""

MENTION = {"mention": "jaguar", "sentence": "the jaguar"}
LINK = json.dumps({"mentions": [MENTION]}).encode()


def request(method, path, body=b"", **headers):
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def posted(body, path="/link", method="POST", content_type="application/json", **headers):
    return request(method, path, body, Content_Type=content_type, Content_Length=len(body), **headers)


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS + PATIENCE)


def answered(server, content):
    """Status and body of the answer to these bytes; the connection ends after it."""
    with connected(server) as connection:
        with suppress(OSError):  # refused before its end
            connection.sendall(content)
        return read(connection)


def read(connection):
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(1 << 16)
        if not part:
            return None, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(headers.get(b"content-length", 1 << 20))  # without one, until the connection ends
    with suppress(ConnectionResetError):  # the rest of a request is not read
        while len(body) < length and (part := connection.recv(1 << 16)):
            body += part
    return int(head.split()[1]), body


@contextmanager
def healthy(server):
    """Ask for the server's health all the time; every answer has to come soon."""
    stop, took = threading.Event(), []

    def ask():
        while not stop.is_set():
            start = time.monotonic()
            with urllib.request.urlopen(f"{server.url}/health", timeout=PATIENCE) as answer:
                assert answer.status == 200
            took.append(time.monotonic() - start)
            stop.wait(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    yield took
    assert asking.is_alive(), "it was refused, or had to wait for long"
    stop.set()
    asking.join()
    assert took and max(took) < SECONDS, took


@pytest.fixture
def started(tmp_path):
    def start():
        knowledge_base(tmp_path)
        return Server(tmp_path, *LIMITS, "--writable")

    return start


def test_slow_clients_wait_alone_and_not_for_ever(started):
    with started() as server, healthy(server):
        slow = {
            "nothing": b"",
            "half of a header": b"POST /link HTTP/1.1\r\nHost: x\r\nContent-Le",
            "half of a body": posted(LINK)[:-5],
            "half of a chunk": request("POST", "/link", b"ff\r\n{", Transfer_Encoding="chunked"),
        }
        connections = {name: [connected(server) for _ in range(50)] for name in slow}
        for name, content in slow.items():
            for connection in connections[name]:
                connection.sendall(content)
        trickling, stop = connected(server), time.monotonic() + SECONDS + PATIENCE
        trickling.setblocking(False)
        for byte in posted(b" " * 1000):  # a byte each now and then
            try:
                trickling.send(bytes([byte]))
            except OSError:
                break
            assert time.monotonic() < stop, "the server reads for ever"
            status, _ = answered(server, posted(LINK))
            assert status == 200
        for name, given in connections.items():
            for connection in given:
                answers = b""
                try:
                    while part := connection.recv(1000):
                        answers += part
                except ConnectionResetError:
                    pass
                assert answers.startswith(b"HTTP/1.1 408") == name.endswith(("body", "chunk")), (name, answers)
                connection.close()


def test_a_client_that_does_not_read_its_answer_is_left(started):
    with started() as server, healthy(server):
        large = json.dumps({"mentions": [{**MENTION, "sentence": f"jaguar {n}"} for n in range(250)], "top_k": 9})
        with connected(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            many = posted(large.encode()) * 20  # more than the buffers of the system hold
            start, closed = time.monotonic(), False
            while not closed and time.monotonic() < start + 60:
                try:
                    many = many[connection.send(many) :] if many else many
                except BlockingIOError:
                    pass
                except OSError:
                    closed = True
                closed = closed or "GONE" in state_of(server, connection)
                time.sleep(0.1)
            assert closed, "the server waits for ever"
        assert answered(server, posted(LINK))[0] == 200


def state_of(server, connection):
    """``GONE`` if the server has no more socket for a connection."""
    own = f"{connection.getsockname()[1]:04X}"
    with open(f"/proc/{server.process.pid}/net/tcp") as table:
        theirs = [line.split()[3] for line in table if line.split()[2].endswith(f":{own}")]
    return "GONE" if not theirs or theirs[0] not in ("01",) else "OPEN"


def test_clients_that_leave_cost_nothing(started):
    with started() as server:
        whole = posted(LINK)
        put = posted(json.dumps({"name": "x", "fields": {"attr": "y"}}).encode(), "/entities/left", "PUT", **BEARER)
        with healthy(server):
            for reset in (False, True):
                for length in (0, 1, 30, len(whole) - 20, len(whole) - 1, len(whole)):
                    for content in (whole[:length], put[: min(length, len(put) - 1)]):
                        for _ in range(5):
                            with connected(server) as connection:
                                connection.sendall(content)
                                if reset:  # no polite end, but a reset
                                    linger = struct.pack("ii", 1, 0)
                                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            assert answered(server, whole)[0] == 200
        assert answered(server, request("GET", "/entities/left"))[0] == 404, "half of a request was carried out"
        assert "Traceback" not in server.output()


def test_large_bodies_are_not_read(started):
    with started() as server, healthy(server):
        announced = request("POST", "/link", Content_Length=10**12)
        status, body = answered(server, announced)
        assert status == 413 and b"larger than 300,000 bytes" in body
        status, _ = answered(server, posted(b" " * (BODY + 1)))
        assert status == 413
        before = server.resident()
        with connected(server) as connection:
            connection.sendall(request("POST", "/link", Transfer_Encoding="chunked"))
            chunk, sent = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16)), 0
            try:
                while sent < 100 * BODY:
                    sent += connection.send(chunk)
            except OSError:
                pass
            assert sent < 100 * BODY and server.resident() - before < 20 * BODY
        assert answered(server, posted(b" " * (BODY - 1)))[0] == 422, "at the limit it is read"


def encoded(image, format="PNG", **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def bomb(side):
    """A PNG of ``side`` x ``side`` pixels in a few kilobytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compressobj(9)
    pixels = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_hostile_images_are_refused(started):
    small = Image.effect_noise((64, 64), 50).convert("RGB")
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(0, 250, 5)]
    images = {
        "too many pixels": (encoded(Image.new("1", (1001, 1000))), 422, b"oversized"),
        "a bomb": (bomb(30_000), 422, b"oversized"),
        "truncated": (encoded(small)[:-2000], 422, b"unreadable"),
        "a truncated JPEG": (encoded(small, "JPEG")[:500], 422, b"unreadable"),
        "no image": (b"%PDF-1.7 nothing", 422, b"unreadable"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 422, b"unreadable"),
        "a page": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>", 422, b"unreadable"),
        "a header alone": (encoded(small)[:33], 422, b"unreadable"),
        "animated": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 200, b"jaguar"),
        "an image": (encoded(small), 200, b"jaguar"),
    }  # fmt: skip
    with started() as server, healthy(server):
        for name, (content, status, text) in images.items():
            body = json.dumps({"mentions": [{**MENTION, "image": base64.b64encode(content).decode()}]}).encode()
            form = (
                b"--x\r\nContent-Disposition: form-data; name=mention\r\n\r\njaguar\r\n"
                b'--x\r\nContent-Disposition: form-data; name=image; filename="../../a"\r\n\r\n'
                + content
                + b"\r\n--x--\r\n"
            )
            uploaded = posted(form, "/link/upload", content_type="multipart/form-data; boundary=x")
            entity = {"name": "x", "fields": {"attr": "y"}, "images": [base64.b64encode(content).decode()]}
            put = posted(json.dumps(entity).encode(), f"/entities/{len(name)}", "PUT", **BEARER)
            for given in (posted(body), uploaded):
                found = answered(server, given)
                assert found[0] == status and text in found[1], (name, found)
            assert (answered(server, put)[0] == 422) == (status == 422), name
        assert "Traceback" not in server.output()


def test_malformed_requests_are_refused(started):
    deep = b"[" * 100_000
    half = rb'{"mentions": [{"mention": "\ud800"}]}'
    queries = b"queries=" + b"%5B" * 50_000
    form = {"content_type": "application/x-www-form-urlencoded"}
    token = {"Authorization": "Bearer \u00e9"}
    malformed = {
        "deep": (posted(deep), {400, 422}),
        "deep and closed": (posted(b'{"mentions": ' + deep + b"]" * 100_000 + b"}"), {400, 422}),
        "deep objects": (posted(b'{"a":' * 50_000), {400, 422}),
        "deep queries": (posted(queries, "/reconcile", **form), {422}),
        "half of a character": (posted(half), {422}),
        "half of a character as a key": (posted(rb'{"mentions": [{"mention": "x"}], "\udfff": 1}'), {422}),
        "no UTF-8": (posted(b'{"mentions": [{"mention": "\xff"}]}'), {400}),
        "NUL": (posted(rb'{"mentions": [{"mention": "ja\u0000guar", "sentence": "\u0000"}]}'), {200}),
        "another type": (posted(LINK, content_type="text/plain"), {422}),
        "no type": (request("POST", "/link", LINK, Content_Length=len(LINK)), {422}),
        "no boundary": (posted(LINK, "/link/upload", content_type="multipart/form-data"), {400, 422}),
        "huge number": (posted(b'{"mentions": [{"mention": "x"}], "top_k": 1' + b"0" * 5000 + b"}"), {400, 422}),
        "not a number": (posted(b'{"mentions": [{"mention": "x"}], "top_k": NaN}'), {422}),
        "an id with NUL": (request("GET", "/entities/a%00b%FF"), {404}),
        "up": (request("GET", "/entities/..%2F..%2F..%2Fetc%2Fpasswd"), {404}),
        "a thumbnail of the system": (request("GET", "/thumbnails//etc/passwd"), {404}),
        "a strange token": (posted(b"{}", "/entities/x", "PUT", **token), {401}),
        "no header's end": (b"GET /health HTTP/1.1\r\n" + b"X-Long: " + b"x" * 200_000, {400, 431}),
        "many headers": (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 50_000, {400, 431}),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), {400}),
        "two lengths": (request("POST", "/link", b"", Content_Length="5\r\nContent-Length: 6"), {400}),
        "a negative length": (request("POST", "/link", b"", Content_Length=-5), {400}),
        "a strange chunk": (request("POST", "/link", b"zz\r\n", Transfer_Encoding="chunked"), {400}),
    }  # fmt: skip
    with started() as server, healthy(server):
        for _ in range(2):
            for name, (content, statuses) in malformed.items():
                status, body = answered(server, content)
                assert status in statuses, (name, status, body[:200])
        assert "Traceback" not in server.output()


def test_memory_does_not_grow(started):
    image = base64.b64encode(bomb(30_000)).decode()
    hostile = [
        posted(LINK)[:-3],
        posted(b" " * (BODY + 1)),
        posted(b"[" * 100_000),
        posted(json.dumps({"mentions": [{**MENTION, "image": image}]}).encode()),
        request("POST", "/link", Content_Length=10**12),
        posted(LINK),
    ]  # fmt: skip

    def a_round(server):
        for content in hostile * 30:
            with connected(server) as connection:
                try:
                    connection.sendall(content)
                    if content != hostile[0]:
                        read(connection)
                except OSError:
                    continue
        return server.resident()

    with started() as server, healthy(server):
        a_round(server)
        sizes = [a_round(server) for _ in range(4)]
        assert max(sizes[1:]) - sizes[0] < 16_000_000, sizes
