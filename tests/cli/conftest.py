"""A tiny training run through the command line, whose files the tests check."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from mimic_pl.cli import main
from tests import tiny


class Trained(NamedTuple):
    root: Path  # the data
    config: Path
    home: Path  # the working directory of the commands
    run: Path


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_set) -> Trained:
    """A run of two epochs. Read-only: the session shares it."""
    home = tmp_path_factory.mktemp("home")
    config = tiny.config(tiny_set, home)
    del config["trainer"]["default_root_dir"]  # so that runs are written to the working directory
    path = write_config(home / "tiny.yaml", config)
    before = Path.cwd()
    os.chdir(home)
    try:
        main(["fit", "--config", str(path)])
    finally:
        os.chdir(before)
    return Trained(tiny_set, path, home, home / "lightning_logs" / "version_0")


@pytest.fixture
def home(trained, tmp_path) -> Path:
    """A writable copy of the folder with the trained run."""
    return shutil.copytree(trained.home, tmp_path / "home")


@pytest.fixture
def command(capsys, monkeypatch):
    """Run a command in a folder: exit code, stdout, stderr."""

    def run(*args: str, folder: Path | None = None) -> tuple[int, str, str]:
        if folder is not None:
            monkeypatch.chdir(folder)
        capsys.readouterr()
        try:
            main(list(args))
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
