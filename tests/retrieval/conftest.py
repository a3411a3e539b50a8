"""A knowledge base that the tests of retrieval share."""

import pytest

from tests.launch import in_own_process
from tests.retrieval.engines import ENTITIES, indexed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A knowledge base to copy, written by another process: those of the tests are forked from this one."""
    folder = tmp_path_factory.mktemp("whole")

    def write():
        indexed(folder, ENTITIES)

    in_own_process(write)
    return folder / "kb"
