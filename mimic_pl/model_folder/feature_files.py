"""Files that the processor's features are built from, such as an alias table, in a model's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mimic_pl.construction import Description, with_files, without
from mimic_pl.processor import RecordFeatures


def write_feature_files(features: Mapping[str, RecordFeatures], folder: Path) -> None:
    """Write the files of each feature into a folder of its own; none for those that have no files."""
    for name, own in features.items():
        if own.config_arguments(folder / name):
            (folder / name).mkdir(parents=True)
            own.save_config(folder / name)


def without_feature_files(processor: Description, features: Mapping[str, RecordFeatures]) -> Description:
    """A processor's description without the arguments that name files of this machine."""
    return _changed(processor, lambda name, own: without(own, *features[name].config_arguments(Path(name))))


def with_feature_files(processor: Description, folder: Path, trust_remote_code: bool) -> Description:
    """A processor's description with the files that :func:`write_feature_files` wrote."""
    return _changed(processor, lambda name, own: with_files(own, folder / name, trust_remote_code))


def _changed(processor: Description, change: Callable[[str, Description], Description]) -> Description:
    features: Mapping[str, Any] | None = processor["init_args"].get("features")
    if not features:
        return processor
    changed = {name: change(name, own) for name, own in features.items()}
    return {**processor, "init_args": {**processor["init_args"], "features": changed}}
