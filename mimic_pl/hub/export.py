"""Exports a training run: its weights, its calibration, and a model card with its results."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from mimic_pl.calibration import FILE, Calibration
from mimic_pl.errors import ConfigError
from mimic_pl.hub.run_facts import facts_of_run
from mimic_pl.model import MIMIC
from mimic_pl.model_folder import save_folder
from mimic_pl.ranking.builder import fingerprint
from mimic_pl.runs import open_run


def export_run(
    run: str | Path,
    folder: str | Path,
    checkpoint: str = "best",
    name: str | None = None,
    license: str | None = None,
    baselines: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a run's model into a folder that loads without the run, its data, and the encoder's checkpoint.

    Args:
        run: The run's folder.
        folder: A new or empty folder, or one with a model to replace.
        checkpoint: ``best``, ``last``, a checkpoint's file name in the run, or its path.
        name: Name of the model in its card; by default, after the data set.
        license: Licence of the weights, as the hub abbreviates it (``apache-2.0``).
        baselines: ``baselines.json`` of ``mimic-pl baselines`` on the same data, for the card.
        trust_remote_code: Also build classes of packages other than mimic_pl; importing them executes their code.

    Returns:
        The folder, absolute.

    Raises:
        ConfigError: It is not a run, or the folder contains something else.
        CheckpointError: The checkpoint cannot be used.
        DataError: A file of the run, or the baselines, are damaged or of other data.
        StoreError: The disk is full, or the folder is not writable.

    Example:
        >>> export_run("lightning_logs/version_0", "my_model", license="apache-2.0")  # doctest: +SKIP
    """
    source = open_run(run)
    path = source.checkpoint(checkpoint)
    model = MIMIC.load_from_checkpoint(path, trust_remote_code=trust_remote_code)
    calibration = Calibration.find(source.folder)
    if calibration is not None:
        calibration = _if_fitted(calibration, model, path)
    facts = facts_of_run(source, path, name, license, baselines, calibrated=calibration is not None)
    files = {} if calibration is None else {FILE: (source.folder / FILE).read_bytes()}
    return save_folder(model, folder, facts, files)


def _if_fitted(calibration: Calibration, model: MIMIC, checkpoint: Path) -> Calibration | None:
    """The calibration if it was fitted on these weights; otherwise it would give wrong probabilities."""
    try:
        calibration.require_weights(fingerprint(model.encoder, model.matcher))
    except ConfigError as error:
        rank_zero_warn(f"{FILE} was not exported with {checkpoint.name}. {error}")
        return None
    return calibration
