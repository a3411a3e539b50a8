"""Writes a model into a folder, which looks complete only when it is."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mimic_pl.calibration import FILE as CALIBRATION
from mimic_pl.construction import Description, without
from mimic_pl.errors import ConfigError
from mimic_pl.files import UNFINISHED_SUFFIX, lock_folder, sha256_of, sync_folder, write_error
from mimic_pl.home import expanded
from mimic_pl.model_description import describe_model
from mimic_pl.model_folder.encoder_facts import checkpoint_names, facts_of
from mimic_pl.model_folder.feature_files import without_feature_files, write_feature_files
from mimic_pl.model_folder.manifest import CONFIG, ENCODER, FEATURES, Manifest, current_versions, has_manifest
from mimic_pl.model_folder.model_card import CardFacts, model_card
from mimic_pl.model_folder.statistics import STATISTICS, write_statistics
from mimic_pl.model_folder.weights import MAX_SHARD, write_weights

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC

_STAGING = f".saving{UNFINISHED_SUFFIX}"
"""Subfolder in which all files are written before they are moved into place."""

_CARD = "README.md"

_OF_THIS_MACHINE = {
    "encoder": ("gradient_checkpointing",),
    "index": ("folder", "storage"),
}
"""Arguments of parts that say where and how to compute on this machine, not what."""


def save_folder(
    model: MIMIC,
    folder: str | Path,
    facts: CardFacts | None = None,
    files: Mapping[str, bytes] | None = None,
    max_shard: int = MAX_SHARD,
) -> Path:
    """Write a model into a folder; see :mod:`mimic_pl.model_folder`.

    An earlier model there is replaced. If the process is killed, the folder either contains the earlier model, or the
    new one, or has no ``config.json`` and cannot be loaded.

    Args:
        model: The model.
        folder: A new or empty folder, or one with a model of mimic-pl.
        facts: What the model card says beside what the model itself shows.
        files: Content of additional files by name, such as ``calibration.json``.
        max_shard: Bytes of a file of weights.

    Returns:
        The folder, absolute.

    Raises:
        ConfigError: The folder contains something else, or a part of the model cannot be described by plain values.
        CheckpointError: A weight is NaN.
        StoreError: Another process is writing there, the disk is full, or the folder is not writable.
    """
    folder = expanded(folder).resolve()
    facts = facts or CardFacts()
    description = _portable(describe_model(model), model)
    _require_free(folder)
    staging = folder / _STAGING
    lock = lock_folder(staging, 0)
    try:
        _clear(staging, lock_file=Path(lock.lock_file))
        (staging / ENCODER).mkdir()
        model.encoder.save_config(staging / ENCODER)
        write_feature_files(model.processor.features, staging / FEATURES)
        write_weights(model, staging, max_shard)
        write_statistics(model.processor.statistics(), staging)
        written = _files_in(staging, Path(lock.lock_file))
        sizes = {name: ((staging / name).stat().st_size, sha256_of(staging / name)) for name in written}
        manifest = Manifest(
            description,
            checkpoint_names(model.encoder),
            facts_of(model.encoder),
            sizes,
            facts.license,
            current_versions(),
        )
        extra = dict(files or {})
        extra[_CARD] = model_card(model, facts, sum(size for size, _ in sizes.values())).encode()
        extra[CONFIG] = manifest.to_json().encode()  # last: with it, the folder is complete
        for name, content in extra.items():
            (staging / name).write_bytes(content)
        _move(staging, folder, [*written, *extra])
    except OSError as error:
        raise write_error(error, folder / (error.filename or ""), 0) from error
    finally:
        lock.release()
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _portable(description: Description, model: MIMIC) -> Description:
    """A model's description without what belongs to this machine, or to the files that its parts came from.

    Raises:
        ConfigError: A part was built with arguments that are not plain values.
    """
    encoder = model.encoder
    kind = type(encoder).__name__
    if description["unrecorded"]:
        raise ConfigError(
            f"The model cannot be saved: plain values cannot describe its {', '.join(description['unrecorded'])}: "
            "functions or objects of other kinds were given. Give classes that derive from "
            "mimic_pl.construction.Recorded, with numbers and texts as arguments."
        )
    parts = {name: part for name, part in description["init_args"].items() if name != "compile_encoder"}
    for name, own in _OF_THIS_MACHINE.items():
        if name in parts:
            parts[name] = without(parts[name], *own)
    if "processor" in parts:
        parts["processor"] = without_feature_files(parts["processor"], model.processor.features)
    named = type(encoder).config_arguments(Path(ENCODER))
    taken = inspect.signature(type(encoder)).parameters
    unknown = [name for name in named if name not in taken]
    if unknown and all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        raise ConfigError(
            f"{kind} cannot be saved without its checkpoint: its constructor lacks the arguments {', '.join(unknown)} "
            f"of the class that it derives from. Add them (or **kwargs) and pass them on, or override "
            f"{kind}.save_config and config_arguments."
        )
    arguments = without(parts["encoder"], *named)["init_args"]
    if "text_length" in taken:  # by default it may depend on the weights
        arguments["text_length"] = encoder.text_length
    if "frozen_features" in taken:  # a cache of this machine, whose features differ in the last bits
        arguments["frozen_features"] = None
    parts["encoder"] = {**parts["encoder"], "init_args": dict(sorted(arguments.items()))}
    return {**description, "init_args": parts}


def _require_free(folder: Path) -> None:
    """Check that nothing but a model of mimic-pl would be overwritten."""
    if folder.is_file():
        raise ConfigError(f"{folder} is a file. Give a folder for the model.")
    if not folder.is_dir() or has_manifest(folder) or (folder / _STAGING).is_dir():
        return
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found:
        raise ConfigError(
            f"{folder} contains other files ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''}). Give a new or "
            "empty folder, or one with a model to replace."
        )


def _clear(staging: Path, lock_file: Path) -> None:
    """Remove what a killed process left."""
    for path in staging.iterdir():
        if path != lock_file:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files_in(staging: Path, lock_file: Path) -> list[str]:
    files = (path for path in staging.rglob("*") if path.is_file() and path != lock_file)
    return sorted(path.relative_to(staging).as_posix() for path in files)


def _move(staging: Path, folder: Path, names: list[str]) -> None:
    """Put complete files into place, ``config.json`` last; those of an earlier model are removed."""
    for name in names:
        with (staging / name).open("rb+") as file:
            os.fsync(file.fileno())
    (folder / CONFIG).unlink(missing_ok=True)
    sync_folder(folder)
    for parts in (ENCODER, FEATURES):
        shutil.rmtree(folder / parts, ignore_errors=True)
    for old in (*folder.glob("model*.safetensors*"), folder / STATISTICS, folder / CALIBRATION):
        old.unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name == CONFIG:
            for below in {folder, *((folder / own).parent for own in names)}:
                sync_folder(below)
        os.replace(staging / name, folder / name)
    sync_folder(folder)
