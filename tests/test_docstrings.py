"""Examples in docstrings run and print what they show."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import mimic_pl

# The kernel modules need Triton, and importing __main__ runs the program.
EXCLUDED = {"mimic_pl.__main__", "mimic_pl.units.triton_attention", "mimic_pl.units.triton_gates"}
OPTIONAL = {"fastapi", "gradio", "prometheus_client", "spacy", "starlette", "uvicorn"}
"""Packages that only servers need."""

MODULES = sorted({module.name for module in pkgutil.walk_packages(mimic_pl.__path__, "mimic_pl.")} - EXCLUDED)


def imported(name):
    """The module, or None if it needs a package that is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        return None


@pytest.mark.parametrize("name", ["mimic_pl", *MODULES])
def test_examples(name):
    if (module := imported(name)) is None:
        pytest.skip("its package is not installed")
    assert doctest.testmod(module).failed == 0


def test_some_examples_run():
    finder = doctest.DocTestFinder()
    examples = [
        example
        for name in MODULES
        if (module := imported(name)) is not None
        for test in finder.find(module)
        for example in test.examples
        if not example.options.get(doctest.SKIP)
    ]
    assert len(examples) > 30


def test_the_github_files_are_valid():
    import yaml

    root = __file__.rpartition("tests")[0]
    for name in (
        "workflows/ci.yml",
        "ISSUE_TEMPLATE/bug.yml",
        "ISSUE_TEMPLATE/feature.yml",
        "ISSUE_TEMPLATE/config.yml",
    ):
        with open(f"{root}.github/{name}") as file:
            content = yaml.safe_load(file)
        assert isinstance(content, dict)
        if name.startswith("workflows"):
            pythons = content["jobs"]["tests"]["strategy"]["matrix"]["python"]
            assert pythons == ["3.10", "3.11", "3.12", "3.13"]
