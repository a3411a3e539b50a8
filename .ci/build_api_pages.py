"""Build the API pages from the docstrings into a folder; any warning is an error.

Every module has a page. pdoc cannot resolve the annotations of a NamedTuple's constructor, which Python generates
outside of the module, and names of libraries that records.py imports for type checkers only; these are shown as text,
and their warning is ignored.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import tempfile
import warnings
from pathlib import Path

import pdoc

import mimic_pl


def main(folder: str) -> None:
    """Build the pages.

    Args:
        folder: Where they go.
    """
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=r"Error parsing type annotation (ForwardRef|(tuple\[)?ImageSource)")
    # A package without __all__ has brought its modules along.
    warnings.filterwarnings("ignore", message="The module specification")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries, as their modules load
    found = pkgutil.walk_packages(mimic_pl.__path__, "mimic_pl.")
    modules = ["mimic_pl", *(module.name for module in found if not module.name.endswith("__main__"))]
    pdoc.render.configure(docformat="google")
    pages_folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)  # pdoc warns of a checkout in the current folder, beside the package that is installed
        pdoc.pdoc(*modules, output_directory=pages_folder)
        os.chdir(pages_folder)
    pages = list(pages_folder.rglob("*.html"))
    if len(pages) <= len(modules):  # an index as well
        sys.exit(f"{len(modules)} modules, and only {len(pages)} pages in {folder}.")
    print(f"{len(pages)} API pages in {folder}.")


if __name__ == "__main__":
    main(sys.argv[1])
