"""The notebooks: each runs top to bottom in a kernel of its own, and what is committed shows what it would show."""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
IMAGES = {"ablations": 2, "error_analysis": 5, "quickstart": 2, "robustness": 2, "subclassing": 1}
"""How many each shows."""

LARGEST_NOTEBOOK = 400_000
LARGEST_IMAGE = 60_000


def committed(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook, kind):
    """Contents of all outputs of a MIME type."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def texts_of(notebook):
    """Everything that a notebook printed or showed as text."""
    streams = [o.text for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "stream"]
    shown = [text for kind in ("text/plain", "text/html", "text/markdown") for text in outputs_of(notebook, kind)]
    return "\n".join([*streams, *shown])


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks, run by name in a copy of the folders that they know of, two at a time."""
    checkout = tmp_path_factory.mktemp("checkout")
    for folder in ("notebooks", "cli_configs"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns(".*"))
    work = tmp_path_factory.mktemp("work")
    # In a kernel of its own, with one core, and with the demo and all else that it writes below one folder.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(work)}
    environment |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(work / "cache")}

    def run(name):
        notebook = nbformat.read(checkout / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        place = {"metadata": {"path": str(checkout / "notebooks")}}
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place, allow_errors=True)
        client.execute(env=environment)
        return notebook

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(IMAGES, pool.map(run, IMAGES), strict=True))


def test_this_test_knows_every_notebook():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_no_cell_fails_and_every_image_is_there(name, executed):
    notebook = executed[name]
    errors = [o for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "error"]
    assert not errors, re.sub(r"\x1b\[[\d;]*m", "", "\n".join(errors[0].traceback))
    assert len(outputs_of(notebook, "image/png")) == IMAGES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_what_is_committed_was_run_top_to_bottom_and_shows_what_a_run_shows(name, executed):
    cells, again = code_cells(committed(name)), code_cells(executed[name])
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell, other in zip(cells, again, strict=True):
        assert bool(cell.outputs) == bool(other.outputs), cell.source
        assert ["image/png" in o.get("data", {}) for o in cell.outputs if o.output_type == "display_data"] == [
            "image/png" in o.get("data", {}) for o in other.outputs if o.output_type == "display_data"
        ], cell.source


@pytest.mark.parametrize("name", IMAGES)
def test_committed_outputs_are_small_and_quiet(name):
    notebook = committed(name)
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < LARGEST_NOTEBOOK
    for image in outputs_of(notebook, "image/png"):
        assert len(image) * 3 / 4 < LARGEST_IMAGE  # base64
    kinds = {(o.output_type, o.get("name")) for cell in code_cells(notebook) for o in cell.outputs}
    assert ("stream", "stderr") not in kinds, "warnings, logs, progress bars"
    assert "error" not in {kind for kind, _ in kinds}


@pytest.mark.parametrize("name", IMAGES)
def test_no_path_of_a_machine_is_committed(name):
    folders = r"(?<![\w.<])/(?:home|Users|root|tmp|work|opt|var|mnt|private)/\S*|[A-Z]:\\\S+"
    assert not re.findall(folders, texts_of(committed(name)))
