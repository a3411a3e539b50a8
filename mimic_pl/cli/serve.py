"""``mimic-pl serve``: a REST server that links mentions to a knowledge base."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from mimic_pl.cli.linking_options import add_model_arguments, add_retriever_arguments, linker_for
from mimic_pl.errors import ConfigError
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.remote_path import folder_at, local_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

TOKEN = "MIMIC_TOKEN"
"""Environment variable with the token of those who may change the knowledge base."""

_ARGUMENTS = "MIMIC_SERVE_ARGUMENTS"
"""Environment variable that passes the command line to worker processes."""


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    from mimic_pl.serve.limits import Limits

    text = "Folder of the knowledge base (see mimic-pl index), or its address s3://BUCKET/FOLDER."
    parser.add_argument("--kb", type=str, required=True, help=text)
    add_model_arguments(parser)
    add_retriever_arguments(parser, "Score only candidates, found by")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on.")
    parser.add_argument("--workers", type=int, default=1, help="Processes; each has a copy of the model.")
    text = f"Let those who have the token in the environment variable {TOKEN} change the knowledge base."
    parser.add_argument("--writable", action="store_true", help=text)
    parser.add_class_arguments(Limits, "limits")


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    config = parser.parse_args(args)
    if config.writable and not os.environ.get(TOKEN):
        raise ConfigError(f"--writable needs a token: set the environment variable {TOKEN} to a secret.")
    if config.writable:
        local_folder(folder_at(config.kb))
    for package in ("fastapi_offline", "prometheus_client", "python_multipart"):
        optional_package(package, "The server", "serve")
    uvicorn = optional_package("uvicorn", "The server", "serve")
    settings: dict[str, Any] = {
        **{"host": config.host, "port": config.port, "workers": config.workers},
        **{"log_config": None, "access_log": False, "server_header": False},
        **{"timeout_keep_alive": math.ceil(config.limits.seconds), "timeout_graceful_shutdown": 60},
        **{"http": "mimic_pl.serve.timed_protocol:TimedProtocol"},
    }
    if config.workers == 1:
        uvicorn.run(_app_of(config), **settings)
        return 0
    from mimic_pl.knowledge_base import KnowledgeBase

    KnowledgeBase(config.kb)  # raises here rather than in every worker
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({_ARGUMENTS: json.dumps(args), "PROMETHEUS_MULTIPROC_DIR": folder})
        uvicorn.run("mimic_pl.cli.serve:worker_app", factory=True, **settings)
    return 0


def worker_app() -> FastAPI:
    """The application in a worker process."""
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser, complete=True)
    return _app_of(parser.parse_args(json.loads(os.environ[_ARGUMENTS])))


def _app_of(config: Namespace) -> FastAPI:
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.serve.app import create_app
    from mimic_pl.serve.limits import Limits

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for name in ("mimic_pl.serve.requests", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    linker = linker_for(KnowledgeBase(config.kb), config)
    token = os.environ[TOKEN] if config.writable else None
    app = create_app(linker, Limits(**config.limits), token)
    # Otherwise every full collection of garbage visits all objects of torch and transformers, and all requests wait for
    # it: with 100 of them at a time, one in twenty took three times as long.
    gc.collect()
    gc.freeze()
    return app
