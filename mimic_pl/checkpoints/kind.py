"""What a checkpoint is: files of other formats than ``torch.save``'s, and where the weights are in its content."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_EXPORT = "Export its weights with torch.save(model.state_dict(), PATH) in the program that wrote it."

_FIRST_BYTES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Fetch the file: git lfs pull."),
    (b"<!doctype html", "a web page. Download the file itself, not the page that shows it."),
    (b"<html", "a web page. Download the file itself, not the page that shows it."),
    (b"\x89hdf\r\n", f"an HDF5 file, as Keras writes. {_EXPORT}"),
    (b"\x93numpy", f"a single NumPy array. {_EXPORT}"),
    (b"gguf", f"a GGUF file with quantised weights. {_EXPORT}"),
    (b"\x1f\x8b", "compressed with gzip. Unpack it first."),
    (b"bzh", "compressed with bzip2. Unpack it first."),
    (b"\xfd7zxz", "compressed with xz. Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd. Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive. Unpack it first."),
    (b"rar!", "a RAR archive. Unpack it first."),
)
"""The beginning of a file, in lower case, and what it is."""

_SUFFIXES = {
    ".onnx": f"an ONNX graph. {_EXPORT}",
    ".index": f"a part of a TensorFlow checkpoint. {_EXPORT}",
    ".meta": f"a part of a TensorFlow checkpoint. {_EXPORT}",
    ".pb": f"a TensorFlow graph. {_EXPORT}",
    ".msgpack": f"a Flax checkpoint. {_EXPORT}",
    ".json": "a JSON file. Name the file with the weights.",
    ".yaml": "a configuration. Name the file with the weights.",
}

_FOLDERS = (
    (
        "zero_to_fp32.py",
        "a sharded DeepSpeed checkpoint. Merge it first, in that folder: python zero_to_fp32.py . OUTPUT",
    ),
    (
        "meta.pt",
        "a sharded FSDP checkpoint of Lightning. Merge it first: python -m "
        "lightning.pytorch.utilities.consolidate_checkpoint FOLDER.",
    ),
    (
        ".metadata",
        "a sharded checkpoint of torch.distributed. Merge it first: python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.",
    ),
    ("saved_model.pb", f"a TensorFlow SavedModel. {_EXPORT}"),
    ("config.json", "a folder of transformers. Name the file with the weights in it."),
)
"""Files by which a folder is recognised."""

_PICKLED_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The beginning of a file of ``torch.save`` before torch 1.6."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Keys under which training programs keep the weights."""

_PREFIX = "module."
"""Added to every name by DataParallel and DistributedDataParallel."""

_COMPILED = "_orig_mod."
"""Added to names by :func:`torch.compile`."""


def foreign_kind(path: Path) -> str | None:
    """What a file or folder is, and what to do, if it is not one of ``torch.save``; ``None`` if it may be one.

    Example:
        >>> foreign_kind(Path("weights.onnx"))
        'an ONNX graph. Export its weights with torch.save(model.state_dict(), PATH) in the program that wrote it.'
    """
    if path.is_dir():
        found = (kind for name, kind in _FOLDERS if (path / name).exists())
        return next(found, "a folder. Name the file with the weights in it.")
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(512)
        if start.startswith(b"PK\x03\x04"):
            return _zip_kind(path)
        if start.startswith(_PICKLED_MAGIC):
            return None
        for first, kind in _FIRST_BYTES:
            if start.lstrip().lower().startswith(first):
                return kind
        if start[257:262] == b"ustar":
            return "a tar archive. Unpack it first."
        if _starts_safetensors(start):
            return "a safetensors file, which holds weights only."
    if ".data-0" in path.name:
        return _SUFFIXES[".index"]
    return _SUFFIXES.get(path.suffix.lower())


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the safetensors format, by its name or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or _starts_safetensors(file.read(16))


def _starts_safetensors(start: bytes) -> bool:
    # The length of a JSON header, and the header.
    return len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30


def _zip_kind(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # truncated: reading it says so
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive. Take its weights out: torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)."
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy archive. {_EXPORT}"
    return "a ZIP archive, but not one of torch.save. Unpack it first, if a checkpoint is in it."


def weights_of(content: object) -> Mapping[str, Any] | None:
    """The weights in the content of a checkpoint, under the names of the model itself.

    They are the content, or what it has as ``state_dict``, ``model`` and so on. The prefixes of DistributedDataParallel
    and of compiled modules are removed.

    Returns:
        The state dict; ``None`` if there is none.
    """
    if not isinstance(content, Mapping):
        return None
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return weights_of(content[key])
    names = [str(name).replace(_COMPILED, "") for name in content]
    while names and all(name.startswith(_PREFIX) for name in names):
        names = [name.removeprefix(_PREFIX) for name in names]
    return dict(zip(names, content.values(), strict=True)) if all(isinstance(n, str) for n in content) else None


def described(content: object) -> str:
    """What the content of a checkpoint is, for an error message."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if content and all(hasattr(value, "shape") for value in content.values()):
        return f"a bare state dict of {len(content)} tensors"
    return f"a dictionary with {', '.join(map(repr, list(content)[:6])) or 'nothing in it'}"
