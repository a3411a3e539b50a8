"""Resolves the path of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from mimic_pl.errors import CheckpointError
from mimic_pl.home import expanded


def checkpoint_path(given: str | Path) -> Path:
    """The local path of a checkpoint: ``~`` and ``file://`` are resolved.

    Args:
        given: A path or a ``file://`` URL.

    Raises:
        CheckpointError: It is a URL of another machine, or there is no such file.
    """
    text = str(given)
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "file":
        rest = unquote(urlsplit(text).path)
    elif separator or text.partition(":")[0] == "registry":
        raise CheckpointError(
            f"The checkpoint {text} is not on this machine. Checkpoints are checked before they are used: download it, "
            "and pass the path of the file."
        )
    path = expanded(rest if separator else given)
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path.absolute()}. Pass the path of a file.")
    return path
