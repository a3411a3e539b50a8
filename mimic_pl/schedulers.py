"""When a learning rate scheduler is stepped, and which metric it follows."""

from __future__ import annotations

import functools
from typing import Any, Literal

from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

Interval = Literal["auto", "epoch", "step"]
"""When a scheduler is stepped; ``auto`` decides by its class."""


def scheduler_config(scheduler: Any, interval: Interval, validate_every: int) -> dict[str, Any]:
    """Lightning's configuration of a scheduler.

    Args:
        scheduler: The scheduler.
        interval: When it is stepped.
        validate_every: Number of epochs between two validations, after which a metric of them is known.
    """
    if interval == "auto":
        interval = "step" if counts_steps(scheduler) else "epoch"
    config = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        followed = "val/mrr" if scheduler.mode == "max" else "train/loss_epoch"
        config["monitor"] = getattr(scheduler, "monitor", None) or followed  # Lightning's subclass has one
        config["frequency"] = validate_every if config["monitor"].startswith("val/") else 1
    return config


def counts_steps(scheduler: Any) -> bool:
    """Whether a scheduler, or a part of it, is usually configured in optimizer steps."""
    parts = getattr(scheduler, "_schedulers", ())  # of SequentialLR and ChainedScheduler
    if isinstance(scheduler, LambdaLR):  # those of transformers are partial functions with num_warmup_steps=...
        functions = (own for own in scheduler.lr_lambdas if isinstance(own, functools.partial))
        return any("steps" in name for own in functions for name in own.keywords)
    return isinstance(scheduler, OneCycleLR | CyclicLR) or any(map(counts_steps, parts))
