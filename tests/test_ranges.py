"""Every number of the configuration has a range, and a value outside of it is refused before anything loads."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import mimic_pl
from mimic_pl import calibration, callbacks, data, encoders, losses, processor, ranking, retrieval, units
from mimic_pl.data import Entity, Mention, degradation
from mimic_pl.errors import ConfigError
from mimic_pl.ranges import COUNT, FRACTION, POSITIVE, SEED, Range, in_range, ranges_of

FREE = {
    # checked against something other than a constant
    "Degradation.strength": "the largest strength of its kind",
    "PublishedStatistics": "figures of a paper, in no configuration",
    "MemoryIndex.capacity": "a hint",
    "Explanation": "a result",
    "LossInputs": "computed by the model",
    "Link": "a result",
    "Links": "a result",
    "Mention.span": "compared with the sentence",
    "Interrupted": "an exception",
    "Calibration.source": "what it was fitted on, in words and figures",
    "MELDataModule.left_out_fold": "a pair, compared with each other: tests/data/test_training_split.py",
    "Calibration.relative": "a pair, each checked like temperature and nil_score",
}
"""Numeric parameters without a range, and why."""


def public_classes() -> list[type]:
    modules = (
        mimic_pl,
        calibration,
        callbacks,
        data,
        degradation,
        encoders,
        losses,
        processor,
        ranking,
        retrieval,
        units,
    )
    found = {getattr(module, name) for module in modules for name in module.__all__}
    return sorted((c for c in found if inspect.isclass(c) and "__init__" in vars(c)), key=lambda c: c.__qualname__)


def numeric(of_class: type) -> Iterator[str]:
    """Arguments annotated with a number, or with a list or dictionary of numbers."""
    for name, parameter in inspect.signature(of_class.__init__).parameters.items():
        if re.search(r"\b(int|float)\b", str(parameter.annotation)):
            yield name


NUMBERS = [(c, name) for c in public_classes() for name in numeric(c)]


def test_all_kinds_of_classes_are_found():
    names = {of_class.__name__ for of_class, _ in NUMBERS}
    assert names >= {"MELDataModule", "CLIPEncoder", "TextVisionEncoder", "TGLU", "AssignmentLoss", "FailureMonitor"}
    assert names >= {"Processor", "BM25Lexicon", "Ranker", "HardNegatives", "WeightCalibration", "CrossDataModule"}


@pytest.mark.parametrize(("of_class", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_number_is_refused_outside_of_its_range(of_class, name):
    free = {f"{base.__name__}{own}" for base in of_class.__mro__ for own in ("", f".{name}")} & FREE.keys()
    assert (name in ranges_of(of_class)) != bool(free), "give it a range, or a reason"
    if free:
        return
    allowed = ranges_of(of_class)[name]
    wrong = [math.nan, True, "3", allowed.low - 1, math.inf, -math.inf]
    wrong += [allowed.high + 1] if allowed.high < math.inf else []
    wrong += [allowed.low] if allowed.above else []
    wrong += [allowed.low + 0.5] if allowed.whole else []
    concrete = of_class if not inspect.isabstract(of_class) else type("Own", (of_class,), {"__abstractmethods__": ()})
    concrete.__abstractmethods__ = frozenset()
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"{name} is .*; it must be {re.escape(str(allowed))}"):
            concrete(**{name: value})


def chosen(of_class: type) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Arguments annotated with a Literal, or with a tuple of one, and its values."""
    names = {**vars(inspect.getmodule(of_class)), **dict.fromkeys(("Image", "PreTrainedTokenizerBase"), Any)}
    for name, hint in get_type_hints(of_class.__init__, names).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                yield name, get_args(part)


CHOICES = [(c, *choice) for c in public_classes() if c not in (Entity, Mention) for choice in chosen(c)]


@pytest.mark.parametrize(
    ("of_class", "name", "values"), CHOICES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_every_choice_is_checked(of_class, name, values):
    if (of_class, name) == (mimic_pl.MIMIC, "lr_interval"):
        pytest.skip("Lightning checks it")
    assert len(CHOICES) > 12 and ranges_of(of_class)[name] == values
    with pytest.raises(ConfigError, match=f"{of_class.__name__}: {name} is 'other'; it must be one of: {values[0]}, "):
        of_class(**{name: "other"})


def test_what_is_in_a_range():
    assert 1 in COUNT and np.int64(3) in COUNT and 0 not in COUNT and 2.0 not in COUNT and False not in COUNT
    assert 0 in FRACTION and 1.0 in FRACTION and np.float32(0.5) in FRACTION and 1.01 not in FRACTION
    assert 1e-30 in POSITIVE and 0.0 not in POSITIVE and 10**400 not in SEED
    assert str(Range(0, 1, whole=False, above=True)) == "a finite number above 0 and at most 1"


def test_values_of_lists_and_dictionaries():
    class Some:
        @in_range(weights=POSITIVE, sizes=COUNT)
        def __init__(self, weights: dict[str, float] | None = None, sizes: tuple[int, ...] = ()) -> None:
            self.built = True

    assert Some({"text": 0.5}, (1, 2)).built and Some(None).built
    with pytest.raises(ConfigError, match=r"Some: weights.text is nan; it must be a finite number above 0"):
        Some({"image": 1.0, "text": math.nan})
    with pytest.raises(ConfigError, match=r"Some: sizes.1 is 0"):
        Some(sizes=(1, 0))
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        Some(size=3)
