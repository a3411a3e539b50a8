"""Shortens jsonargparse's errors to one paragraph: which key, what is wrong, what was probably meant."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from mimic_pl.data import MELDataModule
from mimic_pl.data.degradation import Degradation
from mimic_pl.encoders import Encoder
from mimic_pl.model import MIMIC
from mimic_pl.units import Unit
from mimic_pl.yaml_file import read_yaml

_BASES: dict[str, tuple[type, ...]] = {
    "trainer.logger": (Logger,),
    "trainer.callbacks": (Callback,),
    "trainer": (),
    "data": (MELDataModule, Degradation),
    "": (Encoder, Unit, MIMIC, MELDataModule, Degradation),
}
"""Base classes of what a key may name, by the beginning of the key."""

_NOISE = re.compile(
    r"^(- )?(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value.*"
    r"|Expected a <class 'NoneType'>.*|Expected an? <class '.*'> but got .*NestedArg.*)$"
)
_KEY = re.compile(r"^Parser key \"(?P<key>[^\"]+)\"(?P<more>.*?):?$")
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>[^']+)':$")
_OPTION = re.compile(r"Option '(?P<option>[^']+)' is not accepted")
_CALLABLE = re.compile(r"expects a function or a callable class: .* Got value: Namespace\(class_path='(?P<path>[^']+)'")
_NO_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
_NOT_ACCEPTED = re.compile(r"Subcommand '(?P<command>[^']+)' does not accept option '(?P<option>[^']+)'")
_REQUIRED = re.compile(r"the following arguments are required: (?P<names>.*)")


def short_message(message: str) -> str:
    """Shorten an error message of jsonargparse.

    Args:
        message: The message: a tree of nested keys, alternatives of union types and values.

    Returns:
        ``key.of.the.problem: what is wrong``, with a suggestion if a known name is similar. A message without such a
        tree is returned unchanged.
    """
    keys: list[str] = []
    owner: str | None = None
    problems: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if not text or _NOISE.match(line.strip()):
            continue
        if found := _CLASS.match(text):
            owner = found.group("path")
        elif (found := _KEY.match(text)) and not problems:
            keys.append(found.group("key"))
            # Short errors have key and problem on one line.
            if ": " in text:
                problems.append(text.split(": ", 1)[1])
        elif text not in problems:
            problems.append(text)
    path = ".".join(keys)
    explained = next(filter(None, (_explain(problem, owner, path) for problem in problems)), None)
    problem = explained or "; ".join(problems) or message.strip()
    return f"{path}: {problem}" if path else problem


def unknown_option(message: str, parser: Any, args: Sequence[str]) -> str:
    """Explain that a configuration has a key that the command does not know.

    Args:
        message: The message of jsonargparse.
        parser: The parser of the command.
        args: The command line, whose configuration files are searched for the key.

    Returns:
        The key, the file that contains it, and the most similar known key.
    """
    found = _NOT_ACCEPTED.search(message)
    if found is None:
        return message
    option = found.group("option")
    known = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    files = [file for file in _configurations(args) if _contains(file, option.split("."))]
    where = f"{files[-1]}: " if files else ""
    section, dot, name = option.rpartition(".")
    siblings = [own.rpartition(".")[2] for own in known if own.rpartition(".")[0] == section]
    hint = _suggest(name, siblings) if dot and siblings else _suggest(option, known)
    return f"{where}{found.group('command')} has no option {option!r}. {hint}"


def _configurations(args: Sequence[str]) -> Iterator[Path]:
    """The configuration files on a command line."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        option, equals, value = arg.partition("=")
        if option in ("-c", "--config") and Path(path := value if equals else following).is_file():
            yield Path(path)


def _contains(file: Path, keys: Sequence[str]) -> bool:
    found: Any = read_yaml(file)
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return True


def _explain(problem: str, owner: str | None, key: str) -> str | None:
    """Rephrase jsonargparse's messages about options, classes and required arguments."""
    if found := _OPTION.search(problem):
        # The class of a unit, an optimizer, ... is called with one argument, which no configuration gives.
        called = _CALLABLE.search(problem)
        owner = called.group("path") if called else owner
        options = list(_options(owner))[1 if called else 0 :]
        name = owner.rpartition(".")[2] if owner else "it"
        return f"{name} has no option {found.group('option')!r}. " + _suggest(found.group("option"), options)
    if found := _NO_CLASS.search(problem):
        name = found.group("name")
        return (
            f"no class {name!r} is known. "
            + _suggest(name, list(_classes(key)))
            + " Name a custom class with its module, for example my_module.MyClass, which must be importable from here."
        )
    if found := _REQUIRED.search(problem):
        name = owner.rpartition(".")[2] if owner else "it"
        return f"{name} needs {found.group('names')}."
    return None


def _suggest(name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Choose one of: {', '.join(sorted(choices))}." if choices else ""


def _options(class_path: str | None) -> Iterator[str]:
    """Names of a class's constructor arguments."""
    if class_path is None:
        return
    module, _, name = class_path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return
    yield from (key for key, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD)


def _classes(key: str) -> Iterator[str]:
    """Names of the classes that a key of a configuration may name."""
    bases = list(next(of_key for start, of_key in _BASES.items() if key.startswith(start)))
    while bases:
        base = bases.pop()
        if not inspect.isabstract(base):
            yield base.__name__
        bases.extend(base.__subclasses__())
