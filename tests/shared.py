"""Location of optional shared files; tests that need them are skipped without them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def needs_shared(*parts: str) -> pytest.MarkDecorator:
    """Skip a test unless these shared files exist."""
    path = SHARED.joinpath(*parts)
    return pytest.mark.skipif(not path.exists(), reason=f"no shared/{'/'.join(parts)} next to the checkout")
