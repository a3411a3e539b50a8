"""Safe reading of checkpoint files: no code in them is run, and corruption is reported before the values are used."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic_pl.checkpoints.kind import described, foreign_kind, weights_of
from mimic_pl.checkpoints.path import checkpoint_path
from mimic_pl.errors import CheckpointError

# Raised for corrupted files by torch's readers and its restricted unpickler (an invalid length is a MemoryError).
READ_ERRORS = (
    *(RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, ImportError, MemoryError, zlib.error, zipfile.BadZipFile, struct.error, pickle.UnpicklingError),
)

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_checkpoint(path: str | Path, check: bool = True) -> dict[str, Any]:
    """Read a Lightning checkpoint: plain values and tensors.

    Args:
        path: The file, or its ``file://`` URL.
        check: Verify the checksums that ``torch.save`` writes: torch itself silently loads a flipped byte. (Files from
            before torch 1.6 have none.) If false, tensors are memory-mapped and must not be accessed: if the file is
            truncated meanwhile, the process crashes.

    Raises:
        CheckpointError: The file is missing, corrupted, truncated, not a checkpoint, or contains more than tensors and
            plain values.
    """
    path = checkpoint_path(path)
    require_checkpoint(path)
    if check:
        require_checksums(path)
    checkpoint = load_tensors(path, mmap=not check and zipfile.is_zipfile(path))
    weights = weights_of(checkpoint)
    if weights is None or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(
            f"{path} is not a Lightning checkpoint: it is {described(checkpoint)}, without a 'state_dict'. Use a file "
            "of the run's folder 'checkpoints'; MIMIC.from_published(PATH, ENCODER) also reads weights alone."
        )
    return {**checkpoint, "state_dict": weights}


def require_checkpoint(path: Path) -> None:
    """Check that a file is not recognisably of another kind.

    Raises:
        CheckpointError: The message says which kind it is.
    """
    try:
        kind = foreign_kind(path)
    except OSError as error:
        raise read_error(path, error) from error
    if kind is not None:
        raise CheckpointError(f"{path} is not a checkpoint of torch.save: it is {kind}")
    if not path.is_file():
        raise CheckpointError(f"{path} is a pipe or a device. Pass the path of a file.")


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """Load a file of ``torch.save`` that may contain tensors and plain values only.

    Raises:
        CheckpointError: It cannot be read, or contains something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found is None:
            raise read_error(path, "it does not contain tensors and plain values") from error
        raise CheckpointError(
            f"{path} contains more than tensors and plain values: {found.group(1)}. Such code can do anything; it was "
            "not run. Use another checkpoint, from a source that you trust; of a whole model that you trust, save the "
            "weights alone: torch.save(model.state_dict(), PATH)."
        ) from error
    except READ_ERRORS as error:
        raise read_error(path, error) from error


def require_checksums(path: Path) -> None:
    """Verify the checksums of a file of ``torch.save``; files from before torch 1.6 have none.

    Raises:
        CheckpointError: A record does not match its checksum.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return
        with zipfile.ZipFile(path) as records:
            changed = records.testzip()
            # Torch reads nothing from a record marked as a folder, and leaves its tensor uninitialized.
            folders = [record.filename for record in records.infolist() if record.is_dir() or record.external_attr & 16]
    except READ_ERRORS as error:
        raise read_error(path, error) from error
    if changed is not None or folders:
        raise read_error(path, f"the record {changed or folders[0]} was changed after it was written")


def require_no_nan(state: Mapping[str, Any], source: object) -> None:
    """Check that no weight is NaN. Infinite ones may be intended, as in a mask.

    Raises:
        CheckpointError: Some are NaN; the message names them.
    """
    wrong = [
        name
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(torch.isnan(tensor).any())
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"The weights in {source} contain NaN: {', '.join(wrong[:3])}{more}. The training diverged or the file is "
            "corrupted: use an earlier checkpoint."
        )


def read_error(path: Path, reason: object) -> CheckpointError:
    """The error for a file that cannot be read."""
    if isinstance(reason, PermissionError):
        return CheckpointError(f"{path} cannot be read: {reason.strerror}. Check its permissions.")
    detail = _first_line(reason) if isinstance(reason, Exception) else reason
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is corrupted or truncated ({detail}). Use another checkpoint, or "
        "copy the file again."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
