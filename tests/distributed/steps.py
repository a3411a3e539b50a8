"""A callback that records training steps for the tests."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback

from mimic_pl.distributed import ProcessGroup


class Steps(Callback):
    """Writes loss, mentions and gradients of each step, the metrics of each validation, and the weights at the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.records: list[dict] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.records.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gathered = ProcessGroup().gather_objects((float(outputs["loss"]), batch["index"].tolist()))
        loss = sum(loss for loss, _ in gathered) / len(gathered)
        self.records.append({"loss": loss, "mentions": [index for _, own in gathered for index in own]})

    def on_validation_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        self.records.append({name: value.clone() for name, value in metrics.items() if name.startswith("val/")})

    def on_train_end(self, trainer, pl_module):
        self.records.append(dict(pl_module.state_dict()))
        if trainer.is_global_zero:
            torch.save(self.records, self.path)
