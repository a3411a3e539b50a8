"""Configurations whose sections a command takes in part, as arguments in their place on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # its stubs do not list it
from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor
from mimic_pl.runs import read_yaml


def add_config_argument(parser: LightningArgumentParser, text: str) -> None:
    """Add ``--config``, which may be given several times: what a later file says is laid over the earlier ones."""
    parser.add_argument("-c", "--config", action=ActionConfigFile, help=f"{text} Several may be given.")


def add_processor_argument(parser: LightningArgumentParser) -> None:
    """Add ``--processor``, for commands that read records but build no model."""
    text = "Text templates, image policy, ... of the records; by default those of the configuration's model."
    parser.add_argument("--processor", type=Processor | None, default=None, help=text)


def with_sections(args: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Replace each ``--config FILE`` by those of these sections that the file has, in place: later options still win.

    Args:
        args: The command line.
        names: The sections' names; the others are ignored. ``processor`` is that of the model.

    Raises:
        ConfigError: The file does not exist, or has none of the sections.
    """
    rest = iter(args)
    for arg in rest:
        option, equals, value = arg.partition("=")
        if option not in ("-c", "--config"):
            yield arg
            continue
        path = Path(value if equals else next(rest, ""))
        if not path.is_file():
            raise ConfigError(f"The configuration {str(path)!r} does not exist.")
        sections = read_yaml(path)
        sections["processor"] = _processor(sections.get("model"))
        found = {name: sections[name] for name in names if sections.get(name) is not None}
        if not found.keys() - {"processor"}:
            wanted = " and no ".join(repr(name) for name in names if name != "processor")
            raise ConfigError(f"The configuration {path} has no {wanted} section.")
        yield f"--config={json.dumps(found)}"


def _processor(model: object) -> object:
    """The section of the processor in that of a model."""
    arguments = model.get("init_args") if isinstance(model, dict) else None
    return arguments.get("processor") if isinstance(arguments, dict) else None
