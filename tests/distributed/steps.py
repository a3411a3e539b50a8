"""What the steps of a training come to, as a callback for the tests."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback

from mimic_pl.distributed import ProcessGroup


class Steps(Callback):
    """Writes loss, mentions and gradients of each step, the metrics of each validation, and the weights at the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept: list[dict] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.kept.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        everyone = ProcessGroup().gather_objects((float(outputs["loss"]), batch["index"].tolist()))
        loss = sum(loss for loss, _ in everyone) / len(everyone)
        self.kept.append({"loss": loss, "mentions": [index for _, own in everyone for index in own]})

    def on_validation_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        self.kept.append({name: value.clone() for name, value in metrics.items() if name.startswith("val/")})

    def on_train_end(self, trainer, pl_module):
        self.kept.append(dict(pl_module.state_dict()))
        if trainer.is_global_zero:
            torch.save(self.kept, self.path)
