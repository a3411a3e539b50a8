"""Environments of containers, pipes and old terminals, around whole commands."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from mimic_pl.cli import BROKEN_PIPE, main
from tests.faults.catalogue import BY_TEST, check_command_error
from tests.launch import RunningCommand, environment, needs_fork

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of files are bytes on Linux only")


@needs_fork
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change its user id")
def test_no_home_directory_and_no_name_of_the_user(trained):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = yaml.safe_load(trained.config.read_text())
        config["data"]["init_args"]["root"] = str(shutil.copytree(trained.root, folder / "Tiny"))
        config["trainer"]["max_epochs"] = 1
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
        folder.chmod(0o777)

        def enter_container() -> None:
            for variable in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
                os.environ.pop(variable, None)
            os.setgid(54321)
            os.setuid(54321)

        fit = RunningCommand(["fit", "--config", "tiny.yaml"], folder, before=enter_container)
        assert fit.exit_codes() == [0], fit.output()
        assert BY_TEST["test_no_home_directory_and_no_name_of_the_user"].sees in fit.output()


@needs_fork
def test_the_reader_of_the_output_is_gone(trained, tmp_path):
    """``mimic-pl ... | head -1``, for help, which is printed, and for a table, which rich prints."""
    helped = subprocess.Popen(
        [sys.executable, "-m", "mimic_pl", "fit", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert helped.stdout is not None and helped.stderr is not None
    helped.stdout.close()
    assert helped.wait(60) == BROKEN_PIPE and helped.stderr.read() == b""
    helped.stderr.close()

    def pipe_into_head() -> None:
        receiver, sender = os.pipe()
        subprocess.Popen(["head", "-1"], stdin=receiver, stdout=subprocess.DEVNULL)
        os.close(receiver)
        sys.stdout = os.fdopen(sender, "w", 1)

    shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    test = RunningCommand(["test"], tmp_path, before=pipe_into_head)
    assert test.exit_codes() == [BROKEN_PIPE], test.output()
    assert "Traceback" not in test.output() and "error" not in test.output()
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.json").exists(), "written before the table is printed"


@needs_linux
def test_names_that_are_not_utf8(command, trained, tmp_path):
    other = tmp_path / os.fsdecode(b"caf\xe9")
    other.mkdir()
    options = ["fit", "--config", str(trained.config)]
    for arguments, folder in (([*options, "--data.root", "caf\udce9"], tmp_path), (options, other)):
        code, out, err = command(*arguments, folder=folder)
        message = check_command_error("test_names_that_are_not_utf8", code, err)
        assert "caf\\udce9" in message and out == ""
    assert command("--help", folder=other)[0] == 0


@needs_linux
def test_the_current_folder_is_deleted(command, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = command("test")
    check_command_error("test_the_current_folder_is_deleted", code, err)


LONG = 5000 * "x"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([LONG], 2),
        (["fit", "--config", LONG], 3),
        (["fit", "--config", "tiny.yaml", "--data.root", LONG], 3),
        (["fit", "--config", "tiny.yaml", f"--{LONG}", "3"], 2),
        (["fit", "--config", "tiny.yaml", "--model.encoder", LONG], 2),
        (["test", "--ckpt_path", LONG], 3),
        (["test", "--run", LONG], 3),
        (["report", LONG], 3),
    ],
    ids=lambda value: value[-2][:20] if isinstance(value, list) and len(value) > 1 else None,
)
def test_arguments_of_any_length(command, home, arguments, code):
    found, _, err = command(*arguments, folder=home)
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert found == code and "Traceback" not in err and len(message) < 2200, err


def test_a_terminal_that_lacks_the_characters_of_a_name(trained, tmp_path, monkeypatch):
    root = shutil.copytree(trained.root, tmp_path / "Týny東")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), "ascii"))
    main(["doctor", "--data", "MELDataModule", "--data.root", str(root), "--data.name", "Tiny"])
    sys.stdout.flush()
    shown = "".join(sys.stdout.buffer.getvalue().decode("ascii").split())  # the table breaks words
    assert "T\\xfdny\\u6771" in shown


def test_a_terminal_of_no_width(command, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    code, out, err = command("test", folder=home)
    assert code == 0, err
    assert "overall" in out and "cross_modal" in out
