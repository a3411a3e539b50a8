"""What a watch says when it recognises a signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """A failure signature that was recognised.

    Attributes:
        signature: Its name, and the part it was found in; it is said once an epoch.
        text: What was seen, with its figures, and what to try.
    """

    signature: str
    text: str


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them: ``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
