"""Package metadata, the commands in the README, the console script."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import mimic_pl
from tests.readme import readme_block

tomllib = pytest.importorskip("tomllib", reason="reads TOML since Python 3.11")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def command(name):
    """The command line below a marker in the README, as .ci/run reads it."""
    found = re.search(rf"<!-- {name} -->\n```\n(.+)\n```", README)
    assert found, name
    return found.group(1)


def test_one_version_everywhere():
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert changelog is not None
    assert PROJECT["version"] == citation["version"] == changelog.group(1) == mimic_pl.__version__


def test_every_dependency_has_a_lower_bound_with_a_reason():
    lines = [line.strip() for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()]
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        name, lower_bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+).*", requirement).groups()
        place = lines.index(f'"{requirement}",')
        comment = []
        while lines[place - 1].startswith("#"):
            place -= 1
            comment.insert(0, lines[place])
        assert f"{name} {lower_bound}+" in " ".join(comment), f"{requirement} has no reason above it"


def test_the_readme_commands_are_one_line_each_and_run_what_they_say():
    assert command("main job") == ("pip install . && mimic-pl fit --config cli_configs/demo.yaml && mimic-pl test")
    assert command("test command") == 'pip install ".[test]" && python -m pytest -n auto'


@pytest.mark.parametrize("guide", ["README.md", "cli_configs/README.md", "notebooks/results/README.md"])
def test_files_and_names_in_a_guide_exist(guide):
    folder, text = (ROOT / guide).parent, (ROOT / guide).read_text(encoding="utf-8")
    for path in re.findall(r"(?:cli_configs|tests)/[\w/]+\.\w+", text):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\(([\w./]+\.\w+)(?:#[\w-]+)?\)", text):
        assert (folder / path).is_file(), path
    for module, name in re.findall(r"\b(mimic_pl(?:\.[a-z]\w*)*)\.([A-Z]\w+)", text):
        assert hasattr(import_module(module), name), f"{module}.{name}"
    for module in re.findall(r"help\(\"(mimic_pl\.[a-z]\w*)\"\)", text):
        assert import_module(module).__doc__.count("\n") > 15, f"help({module}) is not a guide"


def test_the_guide_lists_every_overlay():
    text = (ROOT / "cli_configs" / "README.md").read_text(encoding="utf-8")
    for folder in ("experiments", "recipes"):
        table = re.search(rf"overlays? in `{folder}/`.+?\n\n", text, re.DOTALL).group()
        listed = {name for row in table.splitlines() for name in re.findall(r"`([\w.-]+)`", row)}
        shipped = {path.stem for path in (ROOT / "cli_configs" / folder).glob("*.yaml")}
        assert shipped <= listed, f"not listed: {shipped - listed}"


def test_the_unit_of_the_readme_passes_its_check():
    namespace: dict = {}
    exec(readme_block("# theirs_unit.py"), namespace)
    assert issubclass(namespace["TextDistance"], mimic_pl.Unit)


def test_the_example_of_the_readme_is_a_model():
    code = readme_block("# theirs.py")
    namespace: dict = {}
    exec(code, namespace)
    assert issubclass(namespace["Model"], mimic_pl.MIMIC)
    assert len([line for line in code.splitlines() if line.strip()]) <= 11


def test_the_console_script_exists():
    module, _, function = PROJECT["scripts"]["mimic-pl"].partition(":")
    assert callable(getattr(import_module(module), function))
