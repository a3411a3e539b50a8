"""The code examples of the README, which the tests run."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def readme_block(first_line: str) -> str:
    """The code block whose first line is given."""
    blocks = README.read_text().split("```")[1::2]
    (found,) = [block.partition("\n")[2] for block in blocks if block.partition("\n")[2].startswith(first_line)]
    return found
