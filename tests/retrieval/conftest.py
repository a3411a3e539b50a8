"""A knowledge base that the tests of retrieval share."""

import pytest
import torch

from tests.launch import FORK
from tests.retrieval.engines import ENTITIES, indexed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A knowledge base to copy, written by another process: those of the tests are forked from this one."""
    folder = tmp_path_factory.mktemp("whole")

    def write():
        torch.set_num_threads(1)
        indexed(folder, ENTITIES)

    writer = FORK.Process(target=write)
    writer.start()
    writer.join()
    return folder / "kb"
