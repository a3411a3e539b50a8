"""Packages that only some parts need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from mimic_pl.errors import ConfigError


def optional_package(name: str, what: str, extra: str = "formats") -> ModuleType:
    """Import a package that is not installed with mimic-pl.

    Args:
        name: The package, or a module of it.
        what: What needs it, for the message.
        extra: The extra of mimic-pl that contains it.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"{what} needs the package {package}, which cannot be loaded ({error}). Install it: pip install {package}, "
            f'or with all that such parts need: pip install "mimic-pl[{extra}]".'
        ) from error
