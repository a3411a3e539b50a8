"""Checkpoints that are whole or not there, whatever is killed at whatever moment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from mimic_pl.errors import MachineError, StoreError
from mimic_pl.files import UNFINISHED_SUFFIX, write_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it, and renames it.

    Lightning's own way writes below ``/tmp`` first and moves the file, which copies it where that is another disk: a
    kill leaves a part under the checkpoint's name. Addresses (``s3://...``) are written in Lightning's way.

    Raises:
        MachineError: There is no room, or the folder cannot be written to. Older checkpoints are as they were.

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
        write_whole(Path(path), content.getbuffer())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file of a run so that a kill leaves the old one, or none, but never a part.

    Raises:
        MachineError: There is no room, or the folder cannot be written to.
    """
    try:
        write_file(path, content)
    except StoreError as error:
        raise MachineError(str(error)) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what runs that were killed had begun to write. Nobody else may be writing there.

    Args:
        folder: The folder of checkpoints; it need not exist.
    """
    for path in folder.glob(f"*.ckpt{UNFINISHED_SUFFIX}"):
        path.unlink(missing_ok=True)
