"""``config.json`` of a model's folder: what the model is, and which files it consists of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from mimic_pl import __version__
from mimic_pl.construction import Description
from mimic_pl.errors import CheckpointError
from mimic_pl.files import sha256_of

CONFIG = "config.json"
ENCODER = "encoder"
"""Subfolder with the files of the encoder."""

FEATURES = "features"
"""Subfolder with a folder for each of the processor's features that has files."""

LIBRARY = "mimic-pl"

_FORMAT = 1
_PACKAGES = ("torch", "transformers", "timm")
_LARGEST = 1 << 24
"""Bytes; a configuration has a few thousand, and the words of a vocabulary at most some millions."""


@dataclass(frozen=True)
class Manifest:
    """Content of ``config.json``.

    Attributes:
        model: Class paths and plain arguments of all parts of the model.
        started_from: Names of the checkpoints that the encoder's weights started from.
        encoder: What the encoder turned out to be when it was built: widths, text length, image size, ...; it must turn
            out the same when it is built again.
        files: Size in bytes and SHA-256 of every file that is loaded, by its path in the folder.
        license: Licence of the weights, as the hub abbreviates it (``apache-2.0``), if known.
        versions: Versions of the packages that wrote it.
    """

    model: Description
    started_from: list[str]
    encoder: dict[str, Any]
    files: dict[str, tuple[int, str]]
    license: str | None
    versions: dict[str, str]

    def to_json(self) -> str:
        """The content of the file, which is the same for the same model."""
        own = {
            "library_name": LIBRARY,
            "format": _FORMAT,
            "license": self.license,
            "versions": self.versions,
            "started_from": self.started_from,
            "encoder": self.encoder,
            "model": self.model,
            "model_sha256": _digest_of(self.model),
            "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()},
        }
        return json.dumps(own, indent=2, ensure_ascii=False) + "\n"


def current_versions() -> dict[str, str]:
    """Versions of mimic-pl and of the packages that determine what a model computes."""
    return {LIBRARY: __version__, **{name: version(name) for name in _PACKAGES}}


def has_manifest(folder: Path) -> bool:
    """Whether a folder contains a model of mimic-pl, whatever its state."""
    try:
        return _read(folder / CONFIG).get("library_name") == LIBRARY
    except CheckpointError:
        return False


def read_manifest(folder: Path, source: str | None = None) -> Manifest:
    """Read the ``config.json`` of a model's folder.

    Args:
        folder: The folder.
        source: What to call it in messages, such as a hub name.

    Raises:
        CheckpointError: There is none, it is damaged, of another program, or of a later version of mimic-pl.
    """
    where = source or str(folder)
    found = _read(folder / CONFIG, where)
    if found.get("library_name") != LIBRARY:
        kind = f"a model of transformers ({found['model_type']})" if "model_type" in found else "of another program"
        raise CheckpointError(
            f"{where} is not a model of mimic-pl: its config.json is {kind}. Give a folder written by 'mimic-pl "
            "export' or save_pretrained; an encoder's checkpoint is given to a configuration, as "
            "--model.encoder.pretrained."
        )
    if found.get("format") != _FORMAT:
        raise CheckpointError(
            f"{where} has format {found.get('format')!r}, and this version of mimic-pl ({__version__}) reads format "
            f"{_FORMAT}. Update mimic-pl, or export the model again."
        )
    try:
        manifest = Manifest(
            found["model"],
            list(map(str, found["started_from"])),
            dict(found["encoder"]),
            {_inside(name): (int(own["bytes"]), str(own["sha256"])) for name, own in found["files"].items()},
            found["license"],
            dict(found["versions"]),
        )
        intact = found["model_sha256"] == _digest_of(manifest.model)
        manifest.model["class_path"], manifest.model["init_args"]["encoder"]["init_args"], manifest.model["unrecorded"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"The config.json of {where} lacks what describes the model ({error!r:.100}). Get the folder again."
        ) from error
    if not intact:
        raise CheckpointError(
            f"The description of the model in the config.json of {where} was changed after it was written. Get the "
            "file again; to change a model, load it, and save it with save_pretrained."
        )
    return manifest


def require_files(folder: Path, manifest: Manifest, source: str | None = None) -> None:
    """Check that every file of a model is there and has its checksum; safetensors reads a flipped byte in silence.

    Raises:
        CheckpointError: Files are missing or damaged; the message names them.
    """
    where = source or str(folder)
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{where} is incomplete: it lacks {', '.join(missing[:5])}, as its config.json lists. Copy or download the "
            "whole folder again."
        )
    for name, (size, digest) in manifest.files.items():
        try:
            found = (folder / name).stat().st_size, ""
            found = (found[0], sha256_of(folder / name)) if found[0] == size else found
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}. Check permissions.") from error
        if found != (size, digest):
            how = "its checksum differs" if found[0] == size else f"it has {found[0]} bytes instead of {size}"
            raise CheckpointError(f"{folder / name} is damaged: {how} from what config.json says. Get the file again.")


def _digest_of(description: Description) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _inside(name: str) -> str:
    """A path of the manifest, which may not lead out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise ValueError(f"the path {name!r} leads out of the folder")
    return name


def _read(path: Path, where: str | None = None) -> dict[str, Any]:
    where = where or str(path.parent)
    if not path.is_file():
        kind = "is not a folder" if path.parent.is_file() else "has no config.json"
        raise CheckpointError(
            f"{where} {kind}: it is not a model written by 'mimic-pl export' or save_pretrained, or its saving or "
            "copying was interrupted. Write or copy it again; a run's folder is loaded with mimic_pl.load_run(FOLDER)."
        )
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The config.json of {where} is damaged: {error}. Get the file again, or write the model again."
        ) from error
    return found
