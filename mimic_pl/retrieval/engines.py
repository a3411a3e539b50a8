"""Retrievers by name, or by a file of settings."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from mimic_pl.errors import ConfigError
from mimic_pl.home import expanded
from mimic_pl.quoting import listed, quoted
from mimic_pl.retrieval.exact import ExactRetriever
from mimic_pl.retrieval.faiss import FaissRetriever
from mimic_pl.retrieval.lance import LanceRetriever
from mimic_pl.retrieval.milvus import MilvusRetriever
from mimic_pl.retrieval.retriever import Retriever
from mimic_pl.yaml_file import read_yaml

ENGINES: dict[str, type[Retriever]] = {
    "exact": ExactRetriever,
    "lance": LanceRetriever,
    "faiss": FaissRetriever,
    "milvus": MilvusRetriever,
}
"""Retrievers by name."""


def retriever_of(name_or_file: str | Path, k: int | None = None) -> Retriever:
    """A retriever by name, or from a YAML file with the key ``engine``, its name, and its settings.

    Args:
        name_or_file: ``exact``, ``lance``, ``faiss`` or ``milvus``, or the path of a file.
        k: Candidates per channel, in place of the default or the file's.

    Raises:
        ConfigError: There is no such retriever or file, or a setting is wrong.

    Example:
        >>> retriever_of("lance", k=300).k
        300
    """
    settings: dict[str, Any] = {}
    name = str(name_or_file)
    if name not in ENGINES:
        path = expanded(name)
        if not path.is_file():
            raise ConfigError(
                f"There is no retriever {quoted(name)}, and no such file. Choose {listed(list(ENGINES))}, or give a "
                "YAML file with 'engine: lance' and settings."
            )
        settings = read_yaml(path)
        name = str(settings.pop("engine", None))
        if name not in ENGINES:
            raise ConfigError(f"The engine in {path} is {quoted(name)}; it must be one of {listed(list(ENGINES))}.")
        known = list(inspect.signature(ENGINES[name]).parameters)
        if unknown := sorted({*map(str, settings)} - {*known}):
            raise ConfigError(f"{path} has {listed(unknown)}; the settings of {name} are {listed(known)}.")
    return ENGINES[name](**(settings if k is None else {**settings, "k": k}))


def settings_of(retriever: Retriever) -> dict[str, Any]:
    """The content of a file from which :func:`retriever_of` makes an equal retriever.

    Raises:
        ConfigError: It is none of the retrievers that have a name.
    """
    for name, kind in ENGINES.items():
        if type(retriever) is kind:
            return {"engine": name, **retriever.description["init_args"]}
    raise ConfigError(f"A {type(retriever).__name__} has no name; the retrievers are {listed(list(ENGINES))}.")
