"""How an object was built, as class paths and plain arguments, and building it again from these."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mimic_pl.errors import ConfigError

Description = dict[str, Any]
"""``{"class_path": "mimic_pl.units.tglu.TGLU", "init_args": {"hidden_dim": 96}}``: plain values, as in a YAML file."""

TRUSTED = ("mimic_pl", "torch.optim", "torchvision.transforms")
"""Packages whose classes are built from a file without being asked for."""


class Recorded:
    """Remembers the arguments that an object was built with, as plain values; a base class of what a model is made of.

    Every subclass records by itself, those of other projects as well.
    """

    @property
    def description(self) -> Description:
        """Class path and arguments; only those that are not the defaults."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"class_path": path, "init_args": self.__dict__.get("_init_args", {})}

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """Arguments that are no plain values and no recorded objects, such as functions."""
        return self.__dict__.get("_unrecorded", ())

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the constructor of a subclass record its arguments."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Recorded, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return init(self, *args, **kwargs)  # which says what is wrong with the call
        outermost = "_init_args" not in self.__dict__
        if outermost:  # the constructor of the class itself, not one that it calls
            self.__dict__.update(_init_args={}, _unrecorded=())
        _record(self, signature, bound.arguments)
        init(self, *args, **kwargs)
        if outermost:
            del self.__dict__["_passed_on"]

    return wrapper


def _record(self: Recorded, signature: inspect.Signature, arguments: Mapping[str, Any]) -> None:
    """Record the named arguments; of a constructor that another one calls, those that were handed through to it."""
    state = self.__dict__
    handed_through: tuple[list[Any], dict[str, Any]] | None = state.get("_passed_on")
    positional: list[Any] = []
    by_name: dict[str, Any] = {}
    for name, value in list(arguments.items())[1:]:  # without self
        parameter = signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            positional += value
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            by_name |= value
            continue
        given = handed_through is None or (
            handed_through[1].get(name, _NOTHING) is value or any(value is own for own in handed_through[0])
        )
        if given and value is not parameter.default and name not in state["_init_args"]:
            try:
                state["_init_args"][name] = describe(value)
            except _NotPlainError:
                state["_unrecorded"] += (name,)
    state["_passed_on"] = positional, by_name


_NOTHING = object()


class _NotPlainError(Exception):
    """A value that no file can hold."""


def describe(value: Any) -> Any:
    """A value as plain values: recorded objects become class paths with arguments, to any depth."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Recorded):
        if value.unrecorded:
            raise _NotPlainError
        return value.description
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: describe(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(own) for own in value]
    raise _NotPlainError


def without(description: Description, *names: str) -> Description:
    """A description without some of its arguments, which its owner gives anew."""
    arguments = {name: value for name, value in description["init_args"].items() if name not in names}
    return {**description, "init_args": arguments}


def build(description: Any, trust_remote_code: bool = False) -> Any:
    """Build what :func:`describe` has described.

    Args:
        description: Plain values.
        trust_remote_code: Import and build classes of any package.

    Raises:
        ConfigError: A class is not of a trusted package, or is not there.
    """
    if _is_description(description):
        return class_of(description, trust_remote_code)(**build(description["init_args"], trust_remote_code))
    if isinstance(description, Mapping):
        return {name: build(value, trust_remote_code) for name, value in description.items()}
    if isinstance(description, list):
        return [build(value, trust_remote_code) for value in description]
    return description


def factory(description: Description, trust_remote_code: bool = False) -> Callable[..., Any]:
    """What builds a described object from the arguments that the description leaves open."""
    arguments = build(description["init_args"], trust_remote_code)
    return functools.partial(class_of(description, trust_remote_code), **arguments)


def class_of(description: Description, trust_remote_code: bool = False) -> type:
    """The class of a described object.

    Raises:
        ConfigError: It is not of a trusted package, or is not there.
    """
    path = description["class_path"]
    require_trusted([path], trust_remote_code)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"There is no class {path} here. Install the project that it belongs to, or start in its folder."
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"{path} is no class.")
    return found


def require_trusted(paths: Iterable[str], trust_remote_code: bool) -> None:
    """Refuse classes of other packages than :data:`TRUSTED`: importing a module runs its code.

    Raises:
        ConfigError: A class is of another package.
    """
    unknown = [path for path in paths if not path.startswith(tuple(f"{package}." for package in TRUSTED))]
    if unknown and not trust_remote_code:
        raise ConfigError(
            f"The file names {', '.join(sorted(set(unknown)))}, which is not of {', '.join(TRUSTED)}. Building it "
            "would run code of that package. If you trust the file and the package, say so: trust_remote_code=True."
        )


def class_paths(value: Any) -> list[str]:
    """Every class path that a configuration names, to any depth; a class named without its package is left out."""
    if isinstance(value, Mapping):
        own = value.get("class_path")
        named = [own] if isinstance(own, str) and "." in own else []
        return named + [path for below in value.values() for path in class_paths(below)]
    if isinstance(value, list):
        return [path for below in value for path in class_paths(below)]
    return []


def _is_description(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"class_path", "init_args"}
