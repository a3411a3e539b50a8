"""Program for the tests: train with several configurations, and keep each step's loss and gradients.

    torchrun --nproc-per-node 2 -m tests.distributed.steps FOLDER

In FOLDER: ``cases.json`` (name -> arguments of `mimic-pl fit`). Afterwards: ``NAME-PROCESSES.pt``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback

from mimic_pl.cli import main
from mimic_pl.processes import Processes


class Steps(Callback):
    """Writes what each step of training has come to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept: list[dict] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.kept.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        everyone = Processes().objects((float(outputs["loss"]), batch["index"].tolist()))
        loss = sum(loss for loss, _ in everyone) / len(everyone)
        self.kept.append({"loss": loss, "mentions": [index for _, own in everyone for index in own]})

    def on_train_end(self, trainer, pl_module):
        self.kept.append(dict(pl_module.state_dict()))
        if trainer.is_global_zero:
            torch.save(self.kept, self.path)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name, arguments in json.loads((folder / "cases.json").read_text()).items():
        path = folder / f"{name}-{os.environ['WORLD_SIZE']}.pt"
        callback = ["--trainer.callbacks+", "tests.distributed.steps.Steps", "--trainer.callbacks.path", str(path)]
        main(["fit", *arguments, *callback])
