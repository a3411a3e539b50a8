"""Atomic writing and verified reading of checkpoints."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from mimic_pl.checkpoints.reader import read_checkpoint, require_no_nan
from mimic_pl.errors import MachineError, StoreError
from mimic_pl.files import UNFINISHED_SUFFIX, write_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file in the same folder, which is synced and renamed.

    Lightning itself writes to ``/tmp`` and moves the file, which is a copy across disks: a kill leaves a truncated
    checkpoint. URLs (``s3://...``) are written by Lightning, but not read.

    Whatever way a checkpoint was given to the Trainer, its checksums are compared, no code in it is run, and weights
    that are NaN are refused.

    Raises:
        MachineError: The disk is full, or the folder is not writable. Earlier checkpoints are intact.
        CheckpointError: A checkpoint cannot be used.

    Example:
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()])  # doctest: +SKIP
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_run_file(Path(path), content.getbuffer())

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, verified and to the CPU, whatever the arguments."""
        checkpoint = read_checkpoint(path)
        require_no_nan(checkpoint["state_dict"], path)
        return checkpoint


def write_run_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file of a run atomically.

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    try:
        write_file(path, content)
    except StoreError as error:
        raise MachineError(str(error)) from error


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files left by killed runs. No other process may be writing there.

    Args:
        folder: The folder of checkpoints; it need not exist.
    """
    for path in folder.glob(f"*.ckpt{UNFINISHED_SUFFIX}"):
        path.unlink(missing_ok=True)
