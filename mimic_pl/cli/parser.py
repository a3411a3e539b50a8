"""LightningCLI's parser, which names the class whose constructor raises an exception."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.cli.problems import constructing


class Parser(LightningArgumentParser):
    """Converts exceptions of constructors where they are raised; see :func:`~mimic_pl.cli.problems.constructing`.

    jsonargparse wraps them for each level of the configuration, in a list of types and values.
    """

    def add_instantiator(self, instantiator: Callable[..., Any], class_type: type, **kwargs: Any) -> None:
        """Add a function that builds objects of a class."""

        @functools.wraps(instantiator)
        def reporting(built: type, *args: Any, **kwargs: Any) -> Any:
            with constructing(built.__name__):
                return instantiator(built, *args, **kwargs)

        super().add_instantiator(reporting, class_type, **kwargs)

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Build all objects of a configuration."""
        # After Lightning's own instantiators, of the model and the data, since the first that fits is used.
        self.add_instantiator(lambda built, *args, **kwargs: built(*args, **kwargs), object)
        return super().instantiate_classes(cfg, **kwargs)
