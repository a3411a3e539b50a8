"""Ranges and choices of arguments, checked before an object is built."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, ParamSpec, get_args

from mimic_pl.errors import ConfigError
from mimic_pl.quoting import quoted

P = ParamSpec("P")


class Range(NamedTuple):
    """A range of finite numbers.

    Attributes:
        low: Smallest number.
        high: Largest number.
        whole: Whether only integers are allowed.
        above: Whether ``low`` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = True
    above: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether a value is a number in the range; bools and NaN are not."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number = float(value) if not self.whole else int(value)  # type: ignore[call-overload]
        return self.low <= number <= self.high and not math.isinf(number) and not (self.above and number == self.low)

    def __str__(self) -> str:
        """``an integer of at least 1``, ``a number from 0 to 1``."""
        kind = "an integer" if self.whole else "a finite number"
        if self.above:
            return f"{kind} above {self.low:g}" + ("" if self.high == math.inf else f" and at most {self.high:g}")
        if self.high < math.inf:
            return f"{kind} from {self.low:.0f} to {self.high:.0f}"
        return kind if self.low == -math.inf else f"{kind} of at least {self.low:g}"


class Choice(tuple[str, ...]):
    """Allowed texts."""

    __slots__ = ()

    def __str__(self) -> str:
        """``one of: blank, drop, error``."""
        return f"one of: {', '.join(self)}"


def one_of(literal: Any) -> Choice:
    """The values of a ``Literal``."""
    return Choice(get_args(literal))


Allowed = Range | Choice
"""Allowed values of an argument."""

COUNT = Range(1)
NATURAL = Range(0)
SEED = Range(0, 2**32 - 1)
POSITIVE = Range(0, whole=False, above=True)
NOT_NEGATIVE = Range(0, whole=False)
FRACTION = Range(0, 1, whole=False)


def in_range(**ranges: Allowed) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate a constructor to check arguments, by name, before it runs; of lists and dictionaries each value.

    ``None`` is accepted: whether an argument may be left out is a matter of its type.

    Example:
        >>> class Top:
        ...     @in_range(k=COUNT)
        ...     def __init__(self, k: int) -> None:
        ...         self.k = k
        >>> Top(0)
        Traceback (most recent call last):
        mimic_pl.errors.ConfigError: Top: k is 0; it must be an integer of at least 1.
    """

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        signature = inspect.signature(init)
        assert ranges.keys() <= signature.parameters.keys(), f"{init.__qualname__} lacks one of {', '.join(ranges)}"

        @functools.wraps(init)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                given = signature.bind_partial(*args, **kwargs).arguments
            except TypeError:
                given = {}  # the constructor raises with the proper message
            require_ranges(ranges, given, f"{type(args[0]).__name__}: " if args else "")
            init(*args, **kwargs)

        wrapper.__ranges__ = ranges  # type: ignore[attr-defined]
        return wrapper

    return decorate


def ranges_of(of_class: type) -> dict[str, Allowed]:
    """Ranges of a class's arguments, including those that it hands on to its bases."""
    found: dict[str, Allowed] = {}
    for base in of_class.__mro__:
        found = {**getattr(base.__dict__.get("__init__"), "__ranges__", {}), **found}
    return found


def require_ranges(ranges: Mapping[str, Allowed], arguments: Mapping[str, Any], where: str) -> None:
    """Check arguments.

    Args:
        ranges: Ranges by name.
        arguments: Values by name.
        where: Prefix of the message.

    Raises:
        ConfigError: A value is out of range.
    """
    for name, allowed in ranges.items():
        for path, value in _values(name, arguments.get(name)):
            if value is not None and value not in allowed:
                raise ConfigError(f"{where}{path} is {quoted(value)}; it must be {allowed}.")


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, own in value.items():
            yield from _values(f"{name}.{key}", own)
    elif isinstance(value, (list, tuple)):
        for index, own in enumerate(value):
            yield from _values(f"{name}.{index}", own)
    else:
        yield name, value
