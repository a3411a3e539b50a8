"""Atomic writing of a run's configuration."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mimic_pl.atomic_checkpoint_io import write_run_file

# Lightning's string enums (such as Timer's interval) are default values that YAML cannot represent.
yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)

_TEXT = re.compile(r"Unable to serialize instance (\w+)$", re.MULTILINE)
"""How jsonargparse writes a string if a function is allowed, too (``pruning_fn`` of ModelPruning)."""


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder atomically, since a resumed run overwrites it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once.

        Raises:
            MachineError: The disk is full, or the folder is not writable.
        """
        folder = trainer.log_dir  # collective: must be called by every process
        if folder is None or "://" in folder:
            super().setup(trainer, pl_module, stage)
        elif trainer.is_global_zero and not self.already_saved:
            content = _TEXT.sub(r"\1", self.parser.dump(self.config, skip_none=False))
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_run_file(Path(folder) / self.config_filename, content.encode())
        self.already_saved = True
