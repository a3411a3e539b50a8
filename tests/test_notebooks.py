"""The notebooks run top to bottom, each in its own kernel, and the committed outputs are those of such a run."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
IMAGES = {
    "ablations": 2,
    "error_analysis": 5,
    "quickstart": 2,
    "retrieval": 1,
    "robustness": 2,
    "spacy": 1,
    "subclassing": 1,
}
"""Number of images in the outputs of each notebook."""

QUICKSTART = "quickstart"
SHARE_QUICKSTART_RUN = ("error_analysis", "retrieval", "robustness", "spacy")
"""Notebooks that train the model of the quickstart."""
TRAINS = re.compile(
    r'terminal\("mimic-pl fit (?P<configuration>(?:--config \S+ ?)+?)'
    r'(?: --trainer\.default_root_dir (?P<root>\S+))?"\)'
)

LARGEST_NOTEBOOK = 400_000
LARGEST_IMAGE = 60_000


def committed(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook, kind):
    """All outputs of a MIME type."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def texts_of(notebook):
    """All text in the outputs of a notebook."""
    streams = [o.text for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "stream"]
    shown = [text for kind in ("text/plain", "text/html", "text/markdown") for text in outputs_of(notebook, kind)]
    return "\n".join([*streams, *shown])


class Executed:
    """Executed notebooks; each runs on first access, in a copy of the folders that it uses.

    Some of them train the model of the quickstart with the same command line and configuration. Here only the
    quickstart trains it, and the others get a copy of its run.
    """

    def __init__(self, checkout: Path, work: Path) -> None:
        for folder in ("notebooks", "cli_configs"):
            shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns(".*"))
        self.checkout, self.work = checkout, work
        self.notebooks: dict[str, nbformat.NotebookNode] = {}

    def __getitem__(self, name: str) -> nbformat.NotebookNode:
        if name == "spacy":
            pytest.importorskip("spacy")
        if name not in self.notebooks:
            notebook = committed(name)
            for cell in code_cells(notebook):
                cell.outputs, cell.execution_count = [], None
            sources = [cell.source for cell in code_cells(notebook)]
            if name == QUICKSTART:
                (fit,) = (cell for cell in code_cells(notebook) if TRAINS.search(cell.source))
                fit.source += f"\nshutil.copytree('lightning_logs', {str(self.work / 'quickstart')!r})"
            elif name in SHARE_QUICKSTART_RUN:
                self[QUICKSTART]
                for cell in code_cells(notebook):
                    cell.source = TRAINS.sub(self.copy_run, cell.source)
            self.execute(notebook)
            for cell, source in zip(code_cells(notebook), sources, strict=True):
                cell.source = source
            self.notebooks[name] = notebook
        return self.notebooks[name]

    def copy_run(self, fit: re.Match[str]) -> str:
        """Code that copies the run of the quickstart to where a command of another notebook would train it."""
        copy = (str(self.work / "quickstart"), f"{fit['root'] or '.'}/lightning_logs")
        return f"shutil.copytree{copy!r}"

    def execute(self, notebook: nbformat.NotebookNode) -> None:
        """Run a notebook in its own kernel on one core, with all files that it writes below one folder."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.work)}
        environment |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(self.work / "cache")}
        place = {"metadata": {"path": str(self.checkout / "notebooks")}}
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place, allow_errors=True)
        client.execute(env=environment)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return Executed(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize("name", SHARE_QUICKSTART_RUN)
def test_notebooks_that_share_a_run_train_it_the_same_way(name):
    """The same command line except for the folder, and the same configuration."""

    def training(notebook):
        sources = [cell.source for cell in code_cells(committed(notebook))]
        (fit,) = (found for source in sources if (found := TRAINS.search(source)))
        (overlay,) = (source for source in sources if source.startswith("%%writefile short.yaml"))
        return fit["configuration"], overlay, sources[:2]

    assert training(name) == training(QUICKSTART)


def test_every_notebook_is_tested():
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
def test_committed_notebooks_were_run_top_to_bottom_and_show_the_outputs_of_a_run(name, executed):
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
    assert ("stream", "stderr") not in kinds, "no warnings, logs or progress bars"
    assert "error" not in {kind for kind, _ in kinds}


@pytest.mark.parametrize("name", IMAGES)
def test_no_local_path_is_committed(name):
    folders = r"(?<![\w.<])/(?:home|Users|root|tmp|work|opt|var|mnt|private)/\S*|[A-Z]:\\\S+"
    assert not re.findall(folders, texts_of(committed(name)))
