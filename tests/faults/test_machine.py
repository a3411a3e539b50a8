"""Failures of the machine, injected into whole commands."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import yaml

from mimic_pl.checkpoints.reader import read_checkpoint
from mimic_pl.cli.problems import as_mimic_error
from mimic_pl.runs import open_run
from tests.faults.catalogue import BY_TEST, check_command_error
from tests.launch import FORK, RunningCommand, needs_fork
from tests.results import read_jsonl

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux mounts")


def fill(disk: Path, left: int) -> None:
    """Fill a disk up to a number of free bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "taken").write_bytes(bytes(free - left))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("left", [0, 20_000, 150_000])
def test_fit_on_a_disk_that_fills_up(command, trained, small_disk, left):
    shutil.copytree(trained.run, small_disk / "lightning_logs" / "version_0")
    checkpoints = open_run(small_disk / "lightning_logs" / "version_0").checkpoints
    before = {path: path.read_bytes() for path in checkpoints}
    fill(small_disk, left)
    options = ["--trainer.default_root_dir", str(small_disk), "--trainer.max_epochs", "3"]
    code, _, err = command("fit", "--config", str(trained.config), *options, folder=small_disk.parent)
    check_command_error("test_fit_on_a_disk_that_fills_up", code, err)
    for path, content in before.items():
        assert path.read_bytes() == content and read_checkpoint(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_test_on_a_full_disk(command, trained, small_disk):
    run = shutil.copytree(trained.run, small_disk / "lightning_logs" / "version_0")
    fill(small_disk, 0)
    code, _, err = command("test", folder=small_disk)
    check_command_error("test_test_on_a_full_disk", code, err)
    assert not (run / "metrics.json").exists() and not list(run.glob(".*.part*"))
    (small_disk / "taken").unlink()
    code, _, err = command("test", folder=small_disk)
    assert code == 0, err
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 9


@needs_fork
def test_a_limit_on_the_size_of_files(trained, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    options = ["--trainer.default_root_dir", str(tmp_path), "--data.image_cache", "null"]
    fit = RunningCommand(["fit", "--config", str(trained.config), *options], tmp_path, before=limit)
    check_command_error("test_a_limit_on_the_size_of_files", *fit.exit_codes(), fit.output())


def test_a_read_only_disk(command, trained, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    options = ["--trainer.default_root_dir", str(small_disk)]
    code, _, err = command("fit", "--config", str(trained.config), *options, folder=small_disk.parent)
    assert str(small_disk) in check_command_error("test_a_read_only_disk", code, err)


@needs_fork
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change its user id")
def test_no_permission(trained):
    """An unprivileged user who may write neither to the folder of runs nor to the image cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = shutil.copytree(trained.root, folder / "Tiny")
        config = yaml.safe_load(trained.config.read_text())
        config["data"]["init_args"]["root"] = str(root)
        config["trainer"]["default_root_dir"] = str(folder)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
        folder.chmod(0o755)

        def drop_privileges() -> None:
            os.environ["HOME"] = name
            os.setgid(65534)
            os.setuid(65534)

        fit = RunningCommand(["fit", "--config", "tiny.yaml"], folder, before=drop_privileges)
        assert name in check_command_error("test_no_permission", *fit.exit_codes(), fit.output())


def test_a_file_in_place_of_a_folder(command, trained, tmp_path):
    (tmp_path / "runs").write_text("")
    options = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    code, _, err = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
    assert "runs" in check_command_error("test_a_file_in_place_of_a_folder", code, err)


@needs_fork
@needs_linux
def test_no_room_in_shared_memory(trained, tmp_path):
    libc = ctypes.CDLL(None, use_errno=True)
    denied = tmp_path / "denied"

    def small_shared_memory() -> None:
        """Mount a small file system in a mount namespace of this process alone."""
        new_mounts, private = 0x20000, 0x4000 | 0x40000
        failed = libc.unshare(new_mounts) or libc.mount(None, b"/", None, private, None)
        if failed or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=128k"):
            denied.write_text(os.strerror(ctypes.get_errno()))
            os._exit(0)

    sizes = ["--data.num_workers", "1", "--data.batch_size", "20", "--data.image_cache", "null"]
    options = ["--config", str(tmp_path / "wide.yaml"), "--trainer.default_root_dir", str(tmp_path), *sizes]
    config = yaml.safe_load(trained.config.read_text())
    config["model"]["init_args"]["encoder"]["init_args"]["config"]["vision_config"]["image_size"] = 128
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(config))
    fit = RunningCommand(["fit", *options], tmp_path, before=small_shared_memory)
    (code,) = fit.exit_codes()
    if denied.exists():
        pytest.skip(f"a small file system cannot be mounted here: {denied.read_text()}")
    message = check_command_error("test_no_room_in_shared_memory", code, fit.output())
    assert "--data.num_workers 0" in message


def test_a_loader_worker_is_killed(command, trained, tmp_path):
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.02):
            for process in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = ["--data.num_workers", "1", "--trainer.max_epochs", "500", "--trainer.default_root_dir", str(tmp_path)]
    code, _, err = command("fit", "--config", str(trained.config), *options, folder=tmp_path)
    stop.set()
    killer.join()
    check_command_error("test_a_loader_worker_is_killed", code, err)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 55), lambda: bytes(1 << 62), lambda: _device_memory()])
def test_memory_runs_out(allocate):
    fault = BY_TEST["test_memory_runs_out"]
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    problem = as_mimic_error(caught.value)
    assert type(problem) is fault.error and fault.sees in str(problem)


def _device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@needs_fork
def test_two_processes_train_in_one_folder(trained, tmp_path):
    assert FORK is not None
    both = FORK.Barrier(2)
    options = ["fit", "--config", str(trained.config), "--trainer.default_root_dir", str(tmp_path)]
    fits = [RunningCommand(options, tmp_path, before=both.wait, name=f"log{i}-") for i in range(2)]
    assert [fit.exit_codes() for fit in fits] == [[0], [0]], fits[0].output() + fits[1].output()
    runs = sorted((tmp_path / "lightning_logs").iterdir())
    assert [path.name for path in runs] == ["version_0", "version_1"]
    expected = read_checkpoint(open_run(trained.run).last_checkpoint)["state_dict"]
    for run in map(open_run, runs):
        assert len(run.checkpoints) == 2 and len(list(run.folder.glob("events*"))) == 1
        weights = read_checkpoint(run.last_checkpoint)["state_dict"]
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@needs_fork
def test_two_processes_test_one_run(trained, tmp_path):
    """One of them is rejected if they collide, and their results are never mixed."""
    assert FORK is not None
    run = shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    both = FORK.Barrier(2)
    tests = [RunningCommand(["test"], tmp_path, before=both.wait, name=f"log{i}-") for i in range(2)]
    codes = sorted(code for test in tests for code in test.exit_codes())
    assert codes in ([0, 0], [0, 7])
    if codes == [0, 7]:
        assert "Another process is writing" in tests[0].output() + tests[1].output()
    lines = read_jsonl(run / "predictions.jsonl")
    assert [line["id"] for line in lines] == [f"test-{i}" for i in range(9)]
    assert json.loads((run / "metrics.json").read_text())["mentions"] == 9


@pytest.mark.parametrize("content", [b"data: [\n", b"\xff\xfe"])
def test_a_configuration_that_is_not_yaml(command, trained, tmp_path, content):
    (tmp_path / "broken.yaml").write_bytes(content)
    for stage in ("doctor", "fit"):
        code, _, err = command(stage, "--config", "broken.yaml", folder=tmp_path)
        assert "broken.yaml" in check_command_error("test_a_configuration_that_is_not_yaml", code, err)
