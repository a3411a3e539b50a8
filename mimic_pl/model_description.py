"""Descriptions of how a MIMIC was built, stored in its checkpoints so that the model can be rebuilt from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic_pl.checkpoints.reader import read_checkpoint, require_no_nan
from mimic_pl.construction import Description, build, class_of, factory, without
from mimic_pl.errors import CheckpointError

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC

KEY = "mimic_pl"
"""Key of the description in a checkpoint."""

_FACTORIES = ("matcher", "units")
_ONLY_TRAINING = {"optimizer", "lr_scheduler", "lr_interval"}


def describe_model(model: MIMIC) -> Description:
    """Describe a model by class paths and plain arguments: encoder, processor, units, matcher, losses, ranking.

    Units and matcher are described as built, whatever their factories were. Functions that only training needs
    (optimizer, scheduler) are left out.
    """
    described: Description = without(model.description, *_ONLY_TRAINING)
    units = {name: without(unit.description, "dims") for name, unit in model.matcher.named_units()}
    matcher = without(model.matcher.description, "dims", "units")
    unrecorded = sorted({*model.unrecorded} - {*_FACTORIES, *_ONLY_TRAINING})
    arguments = {**described["init_args"], "units": units, "matcher": matcher}
    return {**described, "init_args": arguments, "unrecorded": unrecorded}


def build_model(description: Description, trust_remote_code: bool = False, **overrides: Any) -> MIMIC:
    """Build a described model, with new weights.

    Args:
        description: Output of :func:`describe_model`.
        trust_remote_code: Import and build classes of any package.
        **overrides: Arguments that override described ones.

    Raises:
        ConfigError: A class is not in a trusted package, or does not exist.
        CheckpointError: An argument could not be described and is not given.
    """
    missing = sorted(set(description["unrecorded"]) - overrides.keys())
    if missing:
        raise CheckpointError(
            f"The model was built with arguments that a checkpoint cannot contain: {', '.join(missing)}. Pass them "
            f"again: load_from_checkpoint(path, {missing[0]}=...)."
        )
    described = {name: argument for name, argument in description["init_args"].items() if name not in overrides}
    arguments: dict[str, Any] = {}
    for name, argument in described.items():
        if name == "units":
            arguments[name] = {unit: factory(of_unit, trust_remote_code) for unit, of_unit in argument.items()}
        elif name == "matcher":
            arguments[name] = factory(argument, trust_remote_code)
        else:
            arguments[name] = build(argument, trust_remote_code)
    model: MIMIC = class_of(description, trust_remote_code)(**arguments, **overrides)
    return model


def load_model(path: str | Path, trust_remote_code: bool = False, **overrides: Any) -> MIMIC:
    """Build the model of a checkpoint and load its weights; see :meth:`MIMIC.load_from_checkpoint`."""
    checkpoint = read_checkpoint(path)
    if KEY not in checkpoint:
        raise CheckpointError(
            f"{path} does not describe its model. Load the model of a run from its configuration with "
            "mimic_pl.load_run(FOLDER), and a checkpoint of the published implementation with "
            "MIMIC.from_published(PATH, ENCODER)."
        )
    require_no_nan(checkpoint["state_dict"], path)
    model = build_model(checkpoint[KEY], trust_remote_code, **overrides)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not match the model that it describes: {error}") from error
    return model.eval()
