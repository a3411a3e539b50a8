"""Loads a model from a folder, without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mimic_pl.construction import Description, class_paths, require_trusted, with_files
from mimic_pl.errors import CheckpointError
from mimic_pl.model_description import build_model
from mimic_pl.model_folder.encoder_facts import facts_of
from mimic_pl.model_folder.feature_files import with_feature_files
from mimic_pl.model_folder.manifest import ENCODER, FEATURES, current_versions, read_manifest, require_files
from mimic_pl.model_folder.statistics import STATISTICS, read_statistics
from mimic_pl.model_folder.weights import read_weights

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC


def load_folder(
    folder: Path,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    source: str | None = None,
    **overrides: Any,
) -> MIMIC:
    """Load a model that :func:`~mimic_pl.model_folder.save_folder` wrote.

    Args:
        folder: The folder.
        device: Device of the model; the CPU by default.
        trust_remote_code: Also build classes of packages other than mimic_pl; importing them executes their code.
        source: What to call the folder in messages, such as a hub name.
        **overrides: Arguments of the model that override saved ones, such as ``ranker`` or ``optimizer``.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A file is missing or damaged, or this version of a package builds another encoder.
        ConfigError: The model has a class of another package, or one that does not exist.
    """
    where = source or str(folder)
    manifest = read_manifest(folder, where)
    require_trusted(class_paths(manifest.model), trust_remote_code)
    require_files(folder, manifest, where)
    model = build_model(_located(manifest.model, folder, trust_remote_code), trust_remote_code, **overrides)
    if "encoder" not in overrides:
        _require_equal(manifest.encoder, facts_of(model.encoder), manifest.versions, where)
        model.encoder.started_from = tuple(manifest.started_from)
    read_weights(model, folder, manifest.files, where)
    if STATISTICS in manifest.files:
        model.processor = model.processor.with_statistics(read_statistics(folder, where))
    return model.eval().to(device or "cpu")


def _located(description: Description, folder: Path, trust_remote_code: bool) -> Description:
    """A model's description whose encoder and features are built from their files in the folder."""
    parts = dict(description["init_args"])
    parts["encoder"] = with_files(parts["encoder"], folder / ENCODER, trust_remote_code)
    if "processor" in parts:
        parts["processor"] = with_feature_files(parts["processor"], folder / FEATURES, trust_remote_code)
    return {**description, "init_args": parts}


def _require_equal(saved: dict[str, Any], built: dict[str, Any], versions: dict[str, str], where: str) -> None:
    """Check that the encoder is what it was when the model was saved."""
    differing = [
        f"{name} was {saved[name]}, and is {built.get(name)}" for name in saved if saved[name] != built.get(name)
    ]
    if differing:
        now = current_versions()
        changed = [f"{name} {own}" for name, own in versions.items() if now.get(name) != own]
        advice = f"Install what it was saved with: {', '.join(changed)}." if changed else "Get the folder again."
        raise CheckpointError(f"The encoder of {where} is not the one that was saved: {'; '.join(differing)}. {advice}")
