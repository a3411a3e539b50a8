"""What a processor's features have learnt of a whole knowledge base, such as document frequencies, in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mimic_pl.errors import CheckpointError
from mimic_pl.processor.record_features import Statistics

STATISTICS = "statistics.safetensors"


def write_statistics(statistics: Statistics, folder: Path) -> None:
    """Write statistics; no file if there are none.

    Args:
        statistics: Arrays by name, of :meth:`Processor.statistics <mimic_pl.processor.Processor.statistics>`.
        folder: An existing folder.
    """
    if statistics:
        arrays = {name: np.asarray(array, order="C") for name, array in statistics.items()}
        (folder / STATISTICS).write_bytes(save(arrays))


def read_statistics(folder: Path, source: str) -> Statistics:
    """Read statistics.

    Raises:
        CheckpointError: They cannot be read.
    """
    try:
        return load((folder / STATISTICS).read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{STATISTICS} of {source} cannot be read: {error}. Get the folder again.") from error
