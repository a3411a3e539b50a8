"""Help, version and mistyped commands, handled before anything heavy loads."""

from __future__ import annotations

import difflib
import os
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from mimic_pl import __version__
from mimic_pl.cli.program import ABOUT, COMMANDS, MAIN_OPTIONS, STAGES

ALL = "--all"
"""Together with ``--help``: show every option of a stage."""


def quick_answer(args: Sequence[str]) -> str | None:
    """The output of a command line that requests help or the version; ``None`` for any other.

    Args:
        args: The command line without the program's name.
    """
    if list(args) == ["--version"]:
        return f"mimic-pl {__version__}"
    if not args or args[0] in ("-h", "--help"):
        return _commands()
    if args[0] in COMMANDS and {"-h", "--help"} & set(args[1:]) and ALL not in args:
        return _stage(args[0]) if args[0] in STAGES else _own_command(args)
    return None


def unknown_command(args: Sequence[str]) -> str | None:
    """The error message for an unknown command; ``None`` if the command is known."""
    if not args or args[0].startswith("-") or args[0] in COMMANDS:
        return None
    close = difflib.get_close_matches(args[0], COMMANDS, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no command {args[0]!r}.{meant} Commands: {', '.join(COMMANDS)}."


def unusable_names(args: Sequence[str]) -> str | None:
    """The error message for a current folder that was deleted, or a name that is not valid UTF-8, if any."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return "The current folder was deleted. Change to another one."
    for what, name in (*(("argument", arg) for arg in args), ("current folder", here)):
        try:
            name.encode()
        except UnicodeEncodeError:  # configurations, checkpoints and event files are UTF-8
            return f"The {what} {name!r} is not valid UTF-8. Rename the file or folder."
    return None


def _commands() -> str:
    rows = [(name, command.summary) for name, command in COMMANDS.items()]
    options = [
        ("-h, --help", "Show this help, or after a command its help."),
        ("--version", "Show the version."),
    ]
    return "\n".join(
        [
            "usage: mimic-pl COMMAND [options]",
            "",
            *textwrap.wrap(ABOUT, _width()),
            "",
            "commands:",
            *_table(rows),
            "",
            "options:",
            *_table(options),
        ]
    )


def _stage(name: str) -> str:
    rows = [(option, text) for option, (commands, text) in MAIN_OPTIONS.items() if name in commands]
    more = [
        (f"mimic-pl {name} --help {ALL}", "Every option."),
        (f"mimic-pl {name} --model.help MIMIC", "The options of a class: --data.help RichpediaMEL, and so on."),
        (f"mimic-pl {name} --config FILE --print_config", "The complete configuration, with all defaults."),
    ]
    return "\n".join(
        [
            f"usage: mimic-pl {name} [--config FILE] [options]",
            "",
            *textwrap.wrap(COMMANDS[name].summary, _width()),
            "",
            "main options:",
            *_table(rows),
            "",
            "all options:",
            *_table(more),
        ]
    )


def _own_command(args: Sequence[str]) -> str:
    from jsonargparse import ArgumentParser

    name = args[0]
    parser = ArgumentParser(prog=f"mimic-pl {name}", description=COMMANDS[name].about)
    COMMANDS[name].load().add_arguments(parser, complete=False)
    actions: Any = getattr(parser, "_subcommands_action", None)  # of a command such as kb
    if actions is not None and args[1] in actions.choices:
        parser = actions.choices[args[1]]
    return str(parser.format_help()).rstrip()


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Format two columns, the second one wrapped."""
    first = min(max(len(name) for name, _ in rows), 34)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(20, _width() - first - 4))
        if len(name) > first:
            lines.append(f"  {name}")
            name = ""
        lines += [
            f"  {label:<{first}}  {part}" for label, part in zip((name, *[""] * len(wrapped)), wrapped, strict=False)
        ]
    return lines


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)
