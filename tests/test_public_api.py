"""The public names of `import mimic_pl`, which are loaded lazily."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mimic_pl

LIGHT = """
import sys
import mimic_pl
heavy = sorted({"torch", "lightning", "transformers", "numpy", "PIL"} & sys.modules.keys())
assert not heavy, heavy
assert "MIMIC" in dir(mimic_pl)
from mimic_pl import Entity
assert "torch" not in sys.modules
assert mimic_pl.errors.UsageError.exit_code == 2, "modules are attributes, whatever was imported before"
"""


def test_importing_is_lazy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", mimic_pl.__all__)
def test_every_public_name_exists(name):
    found = getattr(mimic_pl, name)
    assert found.__module__.startswith("mimic_pl.") and found.__doc__


def test_type_checkers_see_the_public_names():
    source = Path(mimic_pl.__file__).read_text()
    block = source.split("if TYPE_CHECKING:")[1].split("__version__")[0]
    named = {word.strip(" ,()") for line in block.splitlines() for word in line.split("import")[-1].split(",")}
    assert set(mimic_pl.__all__) == {name for name in named if name}


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Mimic'"):
        mimic_pl.Mimic  # noqa: B018


def test_help_is_one_screen():
    assert len(mimic_pl.__doc__.splitlines()) < 40
