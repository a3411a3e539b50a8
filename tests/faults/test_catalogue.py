"""The catalogue, the tests and README.md are consistent."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mimic_pl.errors
from mimic_pl.errors import MimicError
from tests.faults.catalogue import FAULTS, README, matches, table

TESTS = Path(__file__).resolve().parents[1]
ROWS = [fault for rows in FAULTS.values() for fault in rows]
EXCLUDED = {"test_catalogue.py", "test_fuzz.py"}


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.fault)
def test_each_row_names_a_test_that_checks_its_message(fault):
    file, _, name = fault.test.partition("::")
    assert name in functions(TESTS / file)
    if fault.error is not None:
        source = (TESTS / file).read_text()
        assert f'"{name}"' in source or (not file.startswith("faults/") and matches(fault, source))
    assert fault.trials >= 1


def test_each_test_has_a_row():
    named = {fault.test for fault in ROWS}
    for path in Path(__file__).parent.glob("test_*.py"):
        if path.name not in EXCLUDED:
            own = {f"faults/{path.name}::{name}" for name in functions(path) if name.startswith("test_")}
            assert own <= named, own - named


def test_the_readme_is_up_to_date():
    assert README.read_text(encoding="utf-8") == table(), "regenerate it: python -m tests.faults.catalogue"


def test_each_error_class_has_a_documented_exit_code_of_its_own():
    kinds = [kind for kind in vars(mimic_pl.errors).values() if isinstance(kind, type) and issubclass(kind, MimicError)]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    documented = dict(
        line.split(maxsplit=1) for line in (mimic_pl.errors.__doc__ or "").splitlines() if line[:1].isdigit()
    )
    for kind in kinds:
        if kind is not MimicError:
            assert f":class:`{kind.__name__}`" in documented[str(kind.exit_code)]
