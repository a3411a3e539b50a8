"""Fixtures shared by several test folders."""

import os

# On CPUs with AVX-512, MKL's products of a row depend in their last bits on the number of rows, unless told otherwise
# before torch is imported. Some tests compare batches of different sizes to the last bit.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import subprocess
import tempfile

import pytest
import torch
from hypothesis import settings

from tests import tiny
from tests.launch import FORK, in_own_process

# No test is timed: machines may be busy.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

# No test may use the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Some tests fork processes, and a child of a process that has used OpenMP threads deadlocks waiting for them.
torch.set_num_threads(1)

# Image caches of the tests are discarded.
_caches = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _caches.name


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-inputs", type=int, default=1000, help="Total number of inputs in tests/faults/test_fuzz.py."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test marked ``own_process`` in a forked process."""
    if FORK is None or pyfuncitem.get_closest_marker("own_process") is None:
        return None
    in_own_process(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    return True


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Folder of a tiny data set in the published layout. Read-only: the session shares it."""
    return tiny.write_set(tmp_path_factory.mktemp("sets") / "Tiny")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount command")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
