"""Findings of the detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """A detected failure signature.

    Attributes:
        signature: Its name and the affected part; the finding is logged once per epoch.
        text: The observation, with its values, and what to try.
    """

    signature: str
    text: str


def enumerated(names: Sequence[str]) -> str:
    """Join names for a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
