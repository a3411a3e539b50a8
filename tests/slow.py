"""Parameters of a test of which some are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(cases: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Cases for ``pytest.mark.parametrize``, one argument or a tuple of several, of which the slow ones are marked."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] if case in slow else [])
        for case in cases
    ]
