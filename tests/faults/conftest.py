"""Fixtures of the command-line tests."""

from __future__ import annotations

from tests.cli.conftest import command, trained

__all__ = ["command", "trained"]
