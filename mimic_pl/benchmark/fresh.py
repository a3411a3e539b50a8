"""Processes that begin with the imports and nothing else."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext


def fresh_processes() -> BaseContext:
    """How to start them.

    A fork of this process would begin with all of its memory; one of a server that only imports does not. Where there
    is no such server each process imports for itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"mimic_pl.benchmark.{name}" for name in ("index", "scaling", "training")])
    return context
