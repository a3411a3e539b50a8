"""Reads the rows of a data set through Hugging Face's ``datasets``: from the hub, or from a local folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mimic_pl.errors import DataError
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.quoting import listed

PREFIX = "datasets:"
"""Begins the name of a data set where a file could be named: ``datasets:NAME[/CONFIGURATION][:SPLIT]``."""


def stream_dataset(address: str) -> Iterator[tuple[str, int, Any]]:
    """Stream the rows of a data set; nothing of it is executed, and no more than is needed is downloaded.

    Args:
        address: ``datasets:`` and the name of the data set, such as ``owner/name`` or a folder; a configuration as a
            further part of the name; a split after a colon, which a data set of one split does not need.

    Yields:
        ``record``, its number and the row.

    Raises:
        ConfigError: The package ``datasets`` is not installed.
        DataError: The data set cannot be loaded, or has several splits and none is named.
    """
    datasets = optional_package("datasets", f"Reading {address}")
    name, split = address.removeprefix(PREFIX), ""
    if not os.path.isdir(name):
        name, _, split = name.rpartition(":") if ":" in name else (name, "", "")
    configuration = None
    if not os.path.isdir(name) and name.count("/") == 2:
        name, _, configuration = name.rpartition("/")
    try:
        loaded = datasets.load_dataset(name, configuration, split=split or None, streaming=True)
        if isinstance(loaded, dict):
            if len(loaded) > 1:
                raise DataError(
                    f"{address} has several splits: {listed(loaded)}. Name one: {PREFIX}{address.removeprefix(PREFIX)}"
                    f":{next(iter(loaded))}."
                )
            (loaded,) = loaded.values()
        for number, row in enumerate(loaded):
            yield "record", number, row
    except DataError:
        raise
    except Exception as error:  # of the hub's client, of the builder, of the file format: there is no common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{address} cannot be loaded: {reason} Check its name and the connection, or download it and name its "
            "folder."
        ) from error
