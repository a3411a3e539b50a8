"""What the server answers is what its OpenAPI schema says, checked with a tool that others wrote (schemathesis)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.launch import environment
from tests.serve.parts import knowledge_base
from tests.serve.server_process import BEARER, Server

pytest.importorskip("fastapi_offline")
pytest.importorskip("schemathesis")

pytestmark = [pytest.mark.slow, pytest.mark.own_process]

# No schema can say that bytes are an image, that a place is inside of the sentence, or that an id is known.
UNSUITABLE = "positive_data_acceptance"

EXAMPLES = 40
"""Random requests per operation, besides those at the limits of each parameter."""


@pytest.mark.parametrize("writable", [False, True])
def test_every_answer_is_one_of_the_schema(tmp_path, writable):
    knowledge_base(tmp_path)
    with Server(tmp_path, *(["--writable"] if writable else [])) as server:
        checked = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", "all",
             "--exclude-checks", UNSUITABLE, "--header", f"Authorization: {BEARER['Authorization']}",
             "--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure", "--no-color"],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert f"{19 if writable else 17} selected" in checked.stdout, checked.stdout
        assert "Traceback" not in server.output()
