"""The command and the trained run of the command line's tests."""

from __future__ import annotations

from tests.cli.conftest import command, trained

__all__ = ["command", "trained"]
