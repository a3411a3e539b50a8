"""A run's configuration in its folder."""

from __future__ import annotations

import re
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mimic_pl.checkpoints.atomic_io import write_run_file
from mimic_pl.errors import MachineError
from mimic_pl.runs import head_of_config
from mimic_pl.trainer_folder import trainer_folder

# Lightning's string enums (such as Timer's interval) are default values that YAML cannot represent.
yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)

_TEXT = re.compile(r"Unable to serialize instance (\w+)$", re.MULTILINE)
"""How jsonargparse writes a string if a function is allowed, too (``pruning_fn`` of ModelPruning)."""


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder atomically, since a resumed run overwrites it.

    If the folder is deleted during training, the next checkpoint or the end of training raises an error: the files
    written since are not a complete run.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once.

        Raises:
            MachineError: The disk is full, or the folder is not writable.
        """
        folder = trainer_folder(trainer)
        self._path = folder / self.config_filename
        if trainer.is_global_zero and not self.already_saved:
            folder.mkdir(parents=True, exist_ok=True)
            content = _TEXT.sub(r"\1", self.parser.dump(self.config, skip_unset=False))
            write_run_file(self._path, (head_of_config(folder) + content).encode())
        self.already_saved = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the folder still exists.

        Raises:
            MachineError: It was deleted.
        """
        self._require_folder(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the folder still exists.

        Raises:
            MachineError: It was deleted.
        """
        self._require_folder(trainer)

    def _require_folder(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self._path.is_file():
            raise MachineError(
                f"The run's folder {self._path.parent} was deleted or moved during training, after step "
                f"{trainer.global_step}. What was written there is lost: start training again."
            )
