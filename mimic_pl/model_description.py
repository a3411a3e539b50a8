"""How a MIMIC was built: written into its checkpoints, so that one of them is enough to have the model again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic_pl.checkpoint_reader import read_checkpoint, require_no_nan
from mimic_pl.construction import Description, build, class_of, factory, without
from mimic_pl.errors import CheckpointError

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC

KEY = "mimic_pl"
"""Where a checkpoint holds the description."""

_FACTORIES = ("matcher", "units")
_ONLY_TRAINING = {"optimizer", "lr_scheduler"}


def describe_model(model: MIMIC) -> Description:
    """Class paths and plain arguments of a model: encoder, processor, units, matcher, losses, ranking.

    Units and matcher are described as they were built, whatever their factories were. What only training needs and is
    a function (optimizer, scheduler) is left out.
    """
    described: Description = without(model.description, *_ONLY_TRAINING)
    units = {name: without(unit.description, "dims") for name, unit in model.matcher.named_units()}
    matcher = without(model.matcher.description, "dims", "units")
    unrecorded = sorted({*model.unrecorded} - {*_FACTORIES, *_ONLY_TRAINING})
    arguments = {**described["init_args"], "units": units, "matcher": matcher}
    return {**described, "init_args": arguments, "unrecorded": unrecorded}


def build_model(description: Description, trust_remote_code: bool = False, **given: Any) -> MIMIC:
    """Build a described model, with new weights.

    Args:
        description: What :func:`describe_model` made.
        trust_remote_code: Import and build classes of any package.
        **given: Arguments that take the place of described ones.

    Raises:
        ConfigError: A class is not of a trusted package, or is not there.
        CheckpointError: An argument could not be described, and is not given.
    """
    missing = sorted(set(description["unrecorded"]) - given.keys())
    if missing:
        raise CheckpointError(
            f"The model was built with arguments that a checkpoint cannot hold: {', '.join(missing)}. Give them again: "
            f"load_from_checkpoint(path, {missing[0]}=...)."
        )
    described = {name: own for name, own in description["init_args"].items() if name not in given}
    arguments: dict[str, Any] = {}
    for name, own in described.items():
        if name == "units":
            arguments[name] = {unit: factory(of_unit, trust_remote_code) for unit, of_unit in own.items()}
        elif name == "matcher":
            arguments[name] = factory(own, trust_remote_code)
        else:
            arguments[name] = build(own, trust_remote_code)
    model: MIMIC = class_of(description, trust_remote_code)(**arguments, **given)
    return model


def load_model(path: str | Path, trust_remote_code: bool = False, **given: Any) -> MIMIC:
    """Build the model of a checkpoint and load its weights; see :meth:`MIMIC.load_from_checkpoint`."""
    path = Path(path).expanduser()
    checkpoint = read_checkpoint(path)
    if KEY not in checkpoint:
        raise CheckpointError(
            f"{path} does not say how its model was built. A run's is built from its configuration: "
            "mimic_pl.load_run(FOLDER). A checkpoint of the published implementation: MIMIC.from_published(PATH, "
            "ENCODER)."
        )
    require_no_nan(checkpoint["state_dict"], path)
    model = build_model(checkpoint[KEY], trust_remote_code, **given)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit the model that it describes: {error}") from error
    return model.eval()
