"""Fixtures of the command-line tests."""

from __future__ import annotations

from tests.cli.conftest import command, home, trained

__all__ = ["command", "home", "trained"]
