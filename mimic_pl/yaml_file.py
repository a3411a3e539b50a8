"""Reads configurations: YAML files of bounded size, also after their anchors are expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mimic_pl.errors import ConfigError, UsageError

_LARGEST = 1 << 24
"""Bytes of a file."""

_MOST = 100_000
"""Values that a file may expand to."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file as plain values.

    Raises:
        ConfigError: It cannot be read; a :class:`UsageError` if it is not valid YAML, not a mapping, or too large.
    """
    try:
        content = _load(path)
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError
        raise UsageError(f"The configuration {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"The configuration {path} is empty, or not a mapping of keys to values.")
    return content


def _load(path: Path) -> Any:
    if path.stat().st_size > _LARGEST:
        raise yaml.YAMLError(f"it has more than {_LARGEST:,} bytes")
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Anchors within anchors describe exponentially many values in a few lines. They are counted before values are
        # constructed, since merge keys (<<) copy what they refer to.
        if _expanded(node, {}) > _MOST:
            raise yaml.YAMLError(f"its anchors expand to more than {_MOST:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values below a node, each counted as often as it is referred to."""
    if id(node) not in known:
        known[id(node)] = _MOST + 1  # of a node that contains itself
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
