"""Fixtures that more than one room of the tests uses."""

import os
import subprocess
import tempfile
import traceback

import pytest
import torch

from tests import tiny
from tests.launch import FORK

# Nothing in the tests may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Some tests fork processes, and a child of a process that has used OpenMP's threads waits for threads that it lacks.
torch.set_num_threads(1)

# Nor keep anything of the images that they draw.
_caches = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _caches.name


def pytest_addoption(parser):
    parser.addoption("--fuzz-inputs", type=int, default=1000, help="Inputs of tests/faults/test_fuzz.py, all together.")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test with the mark ``own_process`` runs in a fork of its own.

    A process that has used Lance cannot be forked into one that uses it, and other tests fork whole commands.
    """
    if FORK is None or pyfuncitem.get_closest_marker("own_process") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    receiver, sender = FORK.Pipe(duplex=False)

    def work():
        torch.set_num_threads(1)  # the threads of the forked process are not there
        try:
            pyfuncitem.obj(**arguments)
            sender.send(None)
        except BaseException:
            sender.send(traceback.format_exc())

    process = FORK.Process(target=work)
    process.start()
    sender.close()
    try:
        failure = receiver.recv()
    except EOFError:
        failure = "it ended without a word"
    process.join()
    assert failure is None, failure
    return True


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """The folder of a tiny data set in the published layout; not to be changed."""
    return tiny.write_set(tmp_path_factory.mktemp("sets") / "Tiny")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
