"""``mimic-pl app``: a web page to try a knowledge base on."""

from __future__ import annotations

import os
import socket

from jsonargparse import ArgumentParser

from mimic_pl.cli.linking_options import add_model_arguments, linker_for
from mimic_pl.errors import ConfigError
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.remote_path import folder_at, local_folder


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    parser.add_argument("--kb", type=str, required=True, help="Folder of the knowledge base (see mimic-pl index).")
    add_model_arguments(parser)
    text = "Folder of another knowledge base, whose model is compared with the first on the same mentions."
    parser.add_argument("--compare", type=str | None, default=None, help=text)
    text = "Folder of a tested run, whose errors can be browsed; loads its model and its data."
    parser.add_argument("--errors", type=str | None, default=None, help=text)
    text = "Let visitors add entities to the knowledge base; only with a --host that nobody else reaches."
    parser.add_argument("--writable", action="store_true", help=text)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
    parser.add_argument("--port", type=int, default=7860, help="Port to listen on; 0 for any free one.")


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    config = parser.parse_args(args)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    optional_package("gradio", "The page", "app")
    uvicorn = optional_package("uvicorn", "The page", "app")
    from mimic_pl.app.actions import Actions
    from mimic_pl.app.error_browser import ErrorBrowser
    from mimic_pl.app.page import create_app, is_local
    from mimic_pl.evaluated_run import open_finished
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.serve.served_linker import ServedLinker

    if config.writable and not is_local(config.host):
        raise ConfigError(
            f"--writable lets everyone who reaches {config.host} change the knowledge base. Use --host 127.0.0.1, or "
            "mimic-pl serve --writable, which asks for a token."
        )
    if config.writable:
        local_folder(folder_at(config.kb))
    with _listen(config.host, config.port) as listening:  # before the models load
        first = ServedLinker(linker_for(KnowledgeBase(config.kb), config))
        other = errors = None
        if config.compare is not None:
            config.model = config.revision = None  # those of the first
            other = ServedLinker(linker_for(KnowledgeBase(config.compare), config))
        if config.errors is not None:
            errors = ErrorBrowser(open_finished(config.errors))
        app = create_app(Actions(first, other, errors), config.writable, config.host, lambda: server.should_exit)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"Open http://{host}:{listening.getsockname()[1]} in a browser. Ctrl-C ends it.", flush=True)
        server.run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"The page cannot listen on port {port} of {host} ({error}). Choose another --port."
        ) from error
