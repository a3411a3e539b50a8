"""Checkpoint files, opened with care: no code in them is run, and damage is told before a wrong number is used."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic_pl.errors import CheckpointError

# What reading a damaged file raises: torch's readers, its restricted unpickler, and what that makes of broken content
# (a length that is none is a MemoryError).
DAMAGE = (
    *(RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, ImportError, MemoryError, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError),
)

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_checkpoint(path: Path, check: bool = True) -> dict[str, Any]:
    """Read a Lightning checkpoint: plain values and tensors.

    Args:
        path: The file.
        check: Compare the checksums that ``torch.save`` writes: torch itself loads a flipped byte in silence. Without,
            tensors are mapped and not loaded; do not look at them: a file that is cut off meanwhile ends the process.

    Raises:
        CheckpointError: It is missing, damaged, cut off, no checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path.resolve()}.")
    if check:
        require_checksums(path)
    checkpoint = load_tensors(path, mmap=not check and zipfile.is_zipfile(path))
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(
            f"{path} is no checkpoint that Lightning wrote: it has no 'state_dict'. Give another file."
        )
    return checkpoint


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """Load a file of ``torch.save`` that may hold tensors and plain values only.

    Raises:
        CheckpointError: It cannot be read, or holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found is None:
            raise damaged(path, "it is no file of tensors and plain values") from error
        raise CheckpointError(
            f"{path} holds more than tensors and plain values: {found.group(1)}. Such code can do anything; it was not "
            "run. Take another checkpoint, of a source that you trust."
        ) from error
    except DAMAGE as error:
        raise damaged(path, error) from error


def require_checksums(path: Path) -> None:
    """Compare the checksums of the records of a file of ``torch.save``; older files than torch 1.6's have none.

    Raises:
        CheckpointError: A record is not as it was written.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return
        with zipfile.ZipFile(path) as records:
            changed = records.testzip()
            # Torch takes nothing out of a record that is marked so, and leaves the tensor to what memory held before.
            folders = [record.filename for record in records.infolist() if record.is_dir() or record.external_attr & 16]
    except DAMAGE as error:
        raise damaged(path, error) from error
    if changed is not None or folders:
        raise damaged(path, f"the record {changed or folders[0]} is not as it was written")


def require_numbers(state: Mapping[str, Any], source: object) -> None:
    """Look whether all weights are numbers. Infinite ones may be meant, as in a mask.

    Raises:
        CheckpointError: Some are NaN; they are named.
    """
    wrong = [
        name
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(torch.isnan(tensor).any())
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"The weights in {source} are not all numbers: NaN in {', '.join(wrong[:3])}{more}. The training diverged "
            "or the file is damaged: take an earlier checkpoint."
        )


def damaged(path: Path, why: object) -> CheckpointError:
    """The error for a file that cannot be read."""
    if isinstance(why, PermissionError):
        return CheckpointError(f"{path} cannot be read: {why.strerror}. Ask for the permission to read it.")
    words = _first_sentence(why) if isinstance(why, Exception) else why
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is damaged or cut off ({words}). Take another checkpoint, or copy "
        "the file again."
    )


def _first_sentence(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
