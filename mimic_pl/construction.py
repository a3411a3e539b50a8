"""Records how an object was built, as class paths and plain arguments, and rebuilds it from them."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mimic_pl.errors import ConfigError

Description = dict[str, Any]
"""``{"class_path": "mimic_pl.units.tglu.TGLU", "init_args": {"hidden_dim": 96}}``: plain values, as in a YAML file."""

TRUSTED = ("mimic_pl", "torch.optim", "torchvision.transforms")
"""Packages whose classes are built from a file without ``trust_remote_code``."""


MODEL_DEFAULTS: dict[str, Description] = {
    "processor": {"class_path": "mimic_pl.processor.Processor"},
    "units": {
        "text": {"class_path": "mimic_pl.units.TGLU"},
        "vision": {"class_path": "mimic_pl.units.VDLU"},
        "cross_modal": {"class_path": "mimic_pl.units.CMFU"},
    },
    "matcher": {"class_path": "mimic_pl.units.Matcher"},
    "losses": {"contrastive": {"class_path": "mimic_pl.losses.UnitConsistentLoss"}},
    "index": {"class_path": "mimic_pl.ranking.IndexBuilder"},
}
"""Parts that :class:`~mimic_pl.MIMIC` builds if a configuration does not name them."""


class Recorded:
    """Base class that records an object's constructor arguments as plain values.

    Every subclass records automatically, including those of other projects.
    """

    @property
    def description(self) -> Description:
        """Class path and non-default arguments."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"class_path": path, "init_args": self.__dict__.get("_init_args", {})}

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """Arguments that are neither plain values nor recorded objects, such as functions."""
        return self.__dict__.get("_unrecorded", ())

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the constructor of a subclass to record its arguments."""
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
            return init(self, *args, **kwargs)  # raises with the proper message
        outermost = "_init_args" not in self.__dict__
        if outermost:  # the constructor of the class itself, not of a base class that it calls
            self.__dict__.update(_init_args={}, _unrecorded=())
        _record(self, signature, bound.arguments)
        init(self, *args, **kwargs)
        if outermost:
            del self.__dict__["_forwarded"]

    return wrapper


def _record(self: Recorded, signature: inspect.Signature, arguments: Mapping[str, Any]) -> None:
    """Record the named arguments; for a base class's constructor, only those that were forwarded to it."""
    state = self.__dict__
    forwarded: tuple[list[Any], dict[str, Any]] | None = state.get("_forwarded")
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
        given = forwarded is None or (
            forwarded[1].get(name, _MISSING) is value or any(value is own for own in forwarded[0])
        )
        if given and value is not parameter.default and name not in state["_init_args"]:
            try:
                state["_init_args"][name] = describe(value)
            except _NotPlainError:
                state["_unrecorded"] += (name,)
    state["_forwarded"] = positional, by_name


_MISSING = object()


class _NotPlainError(Exception):
    """A value that cannot be serialized."""


def describe(value: Any) -> Any:
    """Convert a value to plain values: recorded objects become class paths with arguments, recursively."""
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
    """A description without some of its arguments, which the caller supplies."""
    arguments = {name: value for name, value in description["init_args"].items() if name not in names}
    return {**description, "init_args": arguments}


def with_files(description: Description, folder: Path, trust_remote_code: bool = False) -> Description:
    """A description of an object that is built from the files that its ``save_config`` wrote.

    Args:
        description: Of a class with ``config_arguments``.
        folder: The folder with the files.
        trust_remote_code: Import classes of any package.
    """
    named = class_of(description, trust_remote_code).config_arguments(folder)  # type: ignore[attr-defined]
    return {**description, "init_args": {**description["init_args"], **named}}


def build(description: Any, trust_remote_code: bool = False) -> Any:
    """Build the object described by :func:`describe`.

    Args:
        description: Plain values.
        trust_remote_code: Import and build classes of any package.

    Raises:
        ConfigError: A class is not from a trusted package, or does not exist.
    """
    if _is_description(description):
        return class_of(description, trust_remote_code)(**build(description["init_args"], trust_remote_code))
    if isinstance(description, Mapping):
        return {name: build(value, trust_remote_code) for name, value in description.items()}
    if isinstance(description, list):
        return [build(value, trust_remote_code) for value in description]
    return description


def factory(description: Description, trust_remote_code: bool = False) -> Callable[..., Any]:
    """A factory of a described object, called with the arguments that are missing in the description."""
    arguments = build(description["init_args"], trust_remote_code)
    return functools.partial(class_of(description, trust_remote_code), **arguments)


def class_of(description: Description, trust_remote_code: bool = False) -> type:
    """The class of a described object.

    Raises:
        ConfigError: It is not from a trusted package, or does not exist.
    """
    path = description["class_path"]
    require_trusted([path], trust_remote_code)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The class {path} cannot be imported. Install the project that it belongs to, or start in its folder."
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"{path} is not a class.")
    return found


def require_trusted(paths: Iterable[str], trust_remote_code: bool) -> None:
    """Reject classes from packages outside :data:`TRUSTED`: importing a module runs its code.

    Raises:
        ConfigError: A class is from another package.
    """
    unknown = [path for path in paths if not path.startswith(tuple(f"{package}." for package in TRUSTED))]
    if unknown and not trust_remote_code:
        raise ConfigError(
            f"The file names {', '.join(sorted(set(unknown)))}, which is not from {', '.join(TRUSTED)}. Building it "
            "would run code of that package. If you trust the file and the package, pass trust_remote_code=True."
        )


def class_paths(value: Any) -> list[str]:
    """Every class path in a configuration, at any depth; class names without a package are skipped."""
    if isinstance(value, Mapping):
        own = value.get("class_path")
        named = [own] if isinstance(own, str) and "." in own else []
        return named + [path for below in value.values() for path in class_paths(below)]
    if isinstance(value, list):
        return [path for below in value for path in class_paths(below)]
    return []


def _is_description(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"class_path", "init_args"}
