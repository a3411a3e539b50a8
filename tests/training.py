"""A Trainer for tests, and the units of the published model at a small size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from mimic_pl.units import CMFU, TGLU, VDLU

UNITS = {
    "text": lambda dims: TGLU(dims, 8),
    "vision": lambda dims: VDLU(dims, 8),
    "cross_modal": lambda dims: CMFU(dims, 8),
}


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A Trainer in one process on the CPU that prints, logs and saves nothing unless the options say otherwise."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    defaults = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **options})
