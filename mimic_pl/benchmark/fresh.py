"""Processes with a small initial memory footprint."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext


def fresh_processes() -> BaseContext:
    """Multiprocessing context that starts them.

    A fork of this process would inherit its memory; a fork of a fork server, which only imports, does not. Without a
    fork server, processes are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"mimic_pl.benchmark.{name}" for name in ("index", "scaling", "training")])
    return context
