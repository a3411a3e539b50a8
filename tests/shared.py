"""Where the optional shared material lies; tests that use it skip where it is absent."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def needs_shared(*parts: str) -> pytest.MarkDecorator:
    """Skip unless this part of the shared material is there."""
    path = SHARED.joinpath(*parts)
    return pytest.mark.skipif(not path.exists(), reason=f"no shared material ({'/'.join(parts)}) beside the checkout")
