"""Replaces ``~`` at the start of paths by the user's home folder, as a shell does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

_TIMM_FOLDER = "local-dir:"
"""Prefix of a folder in the name of a timm model."""


def expanded(path: str | Path) -> Path:
    """A path without ``~``. One of an unknown user is unchanged, for the error about a missing file."""
    return Path(os.path.expanduser(path))


def expand_home(value: Any) -> Any:
    """Replace ``~`` at the start of every text in a configuration, at any depth."""
    if isinstance(value, str):
        prefix = _TIMM_FOLDER if value.startswith(_TIMM_FOLDER) else ""
        return prefix + os.path.expanduser(value.removeprefix(prefix))
    if isinstance(value, Mapping):
        return {name: expand_home(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(expand_home, value))
    if isinstance(value, Namespace):
        for name, own in list(vars(value).items()):
            setattr(value, name, expand_home(own))
    return value
