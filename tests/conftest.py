"""Fixtures that more than one room of the tests uses."""

import os

import pytest

from tests import tiny

# Nothing in the tests may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """The folder of a tiny data set in the published layout; not to be changed."""
    return tiny.write_set(tmp_path_factory.mktemp("sets") / "Tiny")
