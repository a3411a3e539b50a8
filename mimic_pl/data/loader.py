"""Loader processes that outlive a signal to all, and a training loader that goes on in the middle of an epoch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mimic_pl.batch import Batch
from mimic_pl.data.dataset import collate
from mimic_pl.data.sampler import SetSampler, TrainSampler
from mimic_pl.errors import ConfigError

_PR_SET_PDEATHSIG = 1


def loading(num_workers: int) -> dict[str, Any]:
    """Arguments that all loaders have in common."""
    return {
        "batch_size": None,  # the samplers make the batches
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": keep_through_signals,
    }


def training_loader(dataset: Dataset[Batch], sampler: TrainSampler | SetSampler, num_workers: int) -> TrainLoader:
    """A loader of training batches, whose processes live as long as the training."""
    return TrainLoader(
        dataset, sampler=sampler, collate_fn=collate, persistent_workers=num_workers > 0, **loading(num_workers)
    )


class TrainLoader(DataLoader[Batch]):
    """Tells Lightning that it can go on in the middle of an epoch, and with what: its sampler's settings.

    Which batches are taken already stands in Lightning's own counters, from which the sampler was told to begin.
    """

    sampler: TrainSampler | SetSampler

    def state_dict(self) -> dict[str, Any]:
        """What decides the batches of an epoch; Lightning writes it into each checkpoint."""
        return {"sampler": self.sampler.settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare a checkpoint's settings with those of this run.

        Raises:
            ConfigError: They differ, and the run goes on in the middle of an epoch.
        """
        before, now = state_dict["sampler"], self.sampler.settings()
        if before != now and self.sampler.taken:
            raise ConfigError(
                f"The checkpoint was taken in the middle of an epoch with batches by {before}, and this run has {now}: "
                "some mentions would be trained on twice in this epoch, and others never. Resume with the data, batch "
                "size, seed and number of processes of the run, or from a checkpoint of the end of an epoch."
            )


def keep_through_signals(worker: int) -> None:
    """In a loader process: leave signals that all processes get to the process that trains, and end with it.

    Ctrl-C, and the end of a job, reach every process. The one that trains needs its loader processes until it has
    written its checkpoint; it ends them itself, which is the one SIGTERM that they heed. If it is killed they end at
    once: they would hold its memory, and the lock on the run's folder, until they notice by themselves. Both are
    Linux's; elsewhere SIGTERM ends a loader process as ever.

    Args:
        worker: Number of the loader process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None and parent.pid is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_word_of, args=(parent.pid,), daemon=True).start()


def _end_at_word_of(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)
