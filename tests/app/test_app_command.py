"""``mimic-pl app``: what is wrong is said before anything loads, and it ends while pages are open."""

from __future__ import annotations

import shlex
import signal
import socket
import sys

import pytest

pytest.importorskip("gradio")
import httpx

from mimic_pl.cli import main
from tests.app.parts import opened
from tests.app.served import Served
from tests.readme import readme_block
from tests.report.conftest import malicious_run  # noqa: F401


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["app", "--kb", "nowhere", *arguments])
    return exit_.value.code, " ".join(capsys.readouterr().err.split())


def test_adding_needs_a_host_that_nobody_else_reaches(capsys):
    code, message = refused(["--writable", "--host", "0.0.0.0"], capsys)
    assert code == 3 and "--writable lets everyone who reaches 0.0.0.0 change the knowledge base" in message


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # what makes an import of it fail
    code, message = refused([], capsys)
    assert code == 3 and "needs the package gradio" in message and 'pip install "mimic-pl[app]"' in message


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, message = refused(["--port", str(port)], capsys)
    assert code == 3 and f"cannot listen on port {port} of 127.0.0.1" in message and "--port" in message


@pytest.mark.slow
@pytest.mark.own_process
def test_the_line_of_the_readme(tmp_path, malicious_run):  # noqa: F811
    opened(tmp_path)
    (tmp_path / "kb").rename(tmp_path / "my_kb")
    (tmp_path / "lightning_logs").mkdir()
    (tmp_path / "lightning_logs" / "version_0").symlink_to(malicious_run)
    _, line = readme_block('pip install "mimic-pl[app]"').strip().splitlines()
    program, command, *options = shlex.split(line)
    assert (program, command) == ("mimic-pl", "app")
    with Served(tmp_path, *options) as served:
        page = httpx.get(served.url).text
    assert all(f'"label":"{tab}"' in page.replace(" ", "") for tab in ("Link", "Errors")) and "mimic-pl: my_kb" in page


@pytest.mark.slow
@pytest.mark.own_process
def test_it_ends_while_a_page_is_open(tmp_path):
    opened(tmp_path)
    with Served(tmp_path) as served, httpx.stream("GET", f"{served.url}/gradio_api/heartbeat/a", timeout=60) as page:
        assert page.status_code == 200
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) == 130
