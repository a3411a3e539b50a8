"""Reads YAML files of bounded size: also of what their anchors expand to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_LARGEST = 1 << 24
"""Bytes of a file."""

_MOST = 100_000
"""Values that a file may expand to."""


def load_bounded(path: Path) -> Any:
    """Load a YAML file as plain values.

    Anchors that contain anchors describe exponentially many values in a few lines, which every later copy expands.

    Raises:
        yaml.YAMLError: It is no valid YAML, is too large, or its anchors expand to too many values.
        ValueError: It is not valid UTF-8.
        OSError: It cannot be read.
    """
    if path.stat().st_size > _LARGEST:
        raise yaml.YAMLError(f"it has more than {_LARGEST:,} bytes")
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Before values are constructed: merge keys (<<) copy what they refer to.
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
