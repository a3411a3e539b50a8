"""LightningCLI's parser, which names the class whose constructor raises an exception and reads 1 as an integer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Union, get_args

from lightning.pytorch.cli import LightningArgumentParser

from mimic_pl.cli.problems import constructing

Instantiator = Callable[..., Any]


class Parser(LightningArgumentParser):
    """Converts exceptions of constructors where they are raised; see :func:`~mimic_pl.cli.problems.constructing`.

    jsonargparse wraps them for each level of the configuration, in a list of types and values.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reporting: list[tuple[Instantiator, type, bool]] = []

    def add_lightning_class_args(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class; where it takes integers and floats, ``1`` is the integer.

        It is not always so: to typing, ``Union[int, float]`` and ``Union[float, int]`` are equal, and Lightning's
        ``Optional[Union[int, float]]`` is the other one if a package such as spaCy was imported before Lightning. Then
        ``--trainer.limit_test_batches 1`` would be all batches, not one.
        """
        added = super().add_lightning_class_args(*args, **kwargs)
        for action in self._actions:
            if hasattr(action, "_typehint"):
                action._typehint = _integers_first(action._typehint)
        return added

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Write a configuration without validating it again, which takes three times as long as writing it."""
        if "skip_none" in kwargs:  # its former name, which Lightning uses
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        return super().dump(*args, **{**kwargs, "skip_validation": True})

    def add_instantiator(self, instantiator: Instantiator, class_type: type, subclasses: bool = True) -> None:
        """Add a function that builds objects of a class, as Lightning calls it; the first that fits is used."""

        @functools.wraps(instantiator)
        def reporting(built: type, *args: Any, **kwargs: Any) -> Any:
            with constructing(built.__name__):
                return instantiator(built, *args, **kwargs)

        self._reporting.append((reporting, class_type, subclasses))

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Build all objects of a configuration, as Lightning calls it."""
        # After Lightning's own instantiators, of the model and the data.
        self.add_instantiator(lambda built, *args, **kwargs: built(*args, **kwargs), object)
        return self.instantiate(cfg, instantiators=self._reporting, **kwargs)


def _integers_first(type_: Any) -> Any:
    members = get_args(type_)
    if int not in members or float not in members[: members.index(int)]:
        return type_
    return Union[tuple(sorted(members, key=lambda member: member is not int))]  # noqa: UP007
