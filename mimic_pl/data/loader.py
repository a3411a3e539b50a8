"""Data loaders: worker processes that survive signals to the process group, and training that resumes mid-epoch."""

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
from mimic_pl.data.sampler import MultiDatasetSampler, TrainSampler
from mimic_pl.errors import ConfigError

_PR_SET_PDEATHSIG = 1


def loader_kwargs(num_workers: int) -> dict[str, Any]:
    """Arguments common to all loaders."""
    return {
        "batch_size": None,  # the samplers yield batches
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": shield_from_signals,
    }


def training_loader(
    dataset: Dataset[Batch], sampler: TrainSampler | MultiDatasetSampler, num_workers: int
) -> TrainLoader:
    """A loader of training batches, with persistent workers."""
    return TrainLoader(
        dataset, sampler=sampler, collate_fn=collate, persistent_workers=num_workers > 0, **loader_kwargs(num_workers)
    )


class TrainLoader(DataLoader[Batch]):
    """A stateful loader, so that Lightning can resume in the middle of an epoch; its state is the sampler's settings.

    The number of batches already consumed comes from Lightning's own counters, through ``sampler.start_at``.
    """

    sampler: TrainSampler | MultiDatasetSampler

    def state_dict(self) -> dict[str, Any]:
        """The settings that determine the batches of an epoch; Lightning writes them into each checkpoint."""
        return {"sampler": self.sampler.settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare a checkpoint's settings with those of this run.

        Raises:
            ConfigError: They differ, and the run resumes in the middle of an epoch.
        """
        before, now = state_dict["sampler"], self.sampler.settings()
        if before != now and self.sampler.consumed:
            raise ConfigError(
                f"The checkpoint was saved in the middle of an epoch with {before}, but this run has {now}: some "
                "mentions would be trained on twice in this epoch, and others never. Resume with the data, batch size, "
                "seed and number of processes of the original run, or from a checkpoint at the end of an epoch."
            )


def shield_from_signals(worker: int) -> None:
    """Make a loader process ignore signals sent to all processes, but exit with the training process.

    Ctrl-C and the end of a job signal every process. The training process needs its loader processes until it has
    written its checkpoint, and then terminates them: they obey only its SIGTERM. If it is killed, they are killed, too:
    otherwise they would keep its memory, and the lock on the run's folder, until they notice. Both work on Linux only;
    elsewhere SIGTERM ends a loader process as usual.

    Args:
        worker: Number of the loader process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None and parent.pid is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=(parent.pid,), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)
