"""Exact resume: a run resumed from any checkpoint continues like the uninterrupted run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from mimic_pl.checkpoints.atomic_io import AtomicCheckpointIO

_Progress = dict[str, Any]


class ExactResume(Callback):
    """Corrects Lightning's counters in a checkpoint so that the rest of the run is unchanged.

    Lightning itself resumes exactly only from the end of an epoch. From elsewhere, this callback ensures that

    - a validation that was due after the checkpoint's batch, or was interrupted, is run from its start (Lightning skips
      it, and after the last batch also the end of the epoch);
    - batches accumulated since the last optimizer step are repeated, since their gradients are lost;
    - with ``max_steps``, a finished epoch is not ended a second time;
    - a run that had stopped early does not continue;
    - a run whose folder was moved or copied keeps the best checkpoints in its folder; a new run that starts from a
      checkpoint of another one does not take over the other's best checkpoints.

    The sampler skips the batches already consumed (:meth:`~mimic_pl.data.sampler.TrainSampler.start_at`), dropout is
    seeded by step, random images by epoch and item, and the other callbacks store their own state. So on a CPU, with
    the same number of processes, the weights are bit-identical. The exceptions are averages over the interrupted epoch
    (``train/loss_epoch``), which contain only the batches since, and so a plateau scheduler that monitors them.

    Checkpoints are verified before they are loaded, and written atomically, as by
    :class:`~mimic_pl.checkpoints.atomic_io.AtomicCheckpointIO`.

    It is one of the callbacks of ``mimic-pl fit``; for a custom Trainer, pass it in ``callbacks``.
    """

    def __init__(self) -> None:
        self._between_epochs = False
        self._within_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Use the reader and writer of checkpoints of this package, unless the Trainer was given another."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct paths and counters before Lightning loads them."""
        self._between_epochs = self._within_epoch = False
        if trainer.ckpt_path:
            _relocate(
                trainer,
                checkpoint.get("callbacks", {}),
                Path(str(trainer.ckpt_path).removeprefix("file://")).resolve().parent,
            )
        if trainer.state.fn != "fit" or "fit_loop" not in checkpoint.get("loops", {}):
            return
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]
        if epochs["current"]["processed"] == epochs["current"]["ready"]:
            self._between_epochs = True
            for count in (epochs["total"], epochs["current"]):
                count["completed"] = count["processed"]
        elif epochs["current"]["started"] == epochs["current"]["ready"]:
            batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
            if not _validated(batches, validation):
                self._within_epoch = True
                again = _without_step(batches, trainer.accumulate_grad_batches)
                for count in (batches["total"], batches["current"]):
                    count.update(dict.fromkeys(count, count["processed"] - again))
                # One batch started and none processed tells Lightning that the validation is unfinished.
                started = {"ready": 1, "started": 1, "processed": int(again > 0), "completed": int(again > 0)}
                validation.update(total=dict(started), current=dict(started), is_last_batch=again > 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct the state of the loops that depends on the loaders."""
        loop = trainer.fit_loop
        if self._between_epochs:
            # Lightning assumes that any run with max_steps resumes within an epoch.
            loop._restarting = False
            loop.epoch_loop.restarting = False
            loop.epoch_loop.reset_restart_stage()
        if self._within_epoch:
            assert loop._data_fetcher is not None
            validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
            # The loggers' step, which is incremented after a batch's validation.
            loop.epoch_loop._batches_that_stepped = trainer.global_step - validates
            if loop.epoch_loop._num_ready_batches_reached() and not validates:
                loop._data_fetcher.done = True
        self._between_epochs = self._within_epoch = False
        for stopping in trainer.early_stopping_callbacks:
            if stopping.wait_count >= stopping.patience or stopping.stopped_epoch:
                rank_zero_info("The run had stopped early.")
                trainer.should_stop = True


def _relocate(trainer: Trainer, states: dict[str, Any], folder: Path) -> None:
    """Correct the paths that a checkpoint has of others in its folder, which may have been moved.

    A run that starts from a checkpoint of another one has no best checkpoint yet.
    """
    for saver in trainer.checkpoint_callbacks:
        state = states.get(saver.state_key)
        if not isinstance(saver, ModelCheckpoint) or not state:
            continue
        if saver.dirpath is None or Path(saver.dirpath).resolve() != folder:
            state["best_model_path"] = ""
            continue
        state["dirpath"] = saver.dirpath
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = _moved(state[name], saver.dirpath)
        best = {_moved(path, saver.dirpath): score for path, score in state["best_k_models"].items()}
        state["best_k_models"] = best


def _moved(path: str, folder: str | Path) -> str:
    return os.path.join(folder, os.path.basename(path)) if path else path


def _validated(batches: _Progress, validation: _Progress) -> bool:
    """Whether the checkpoint was saved at the end of the validation after its last batch."""
    if batches["current"]["completed"] < batches["current"]["processed"]:
        return False  # it was saved at the end of the batch
    count = validation["current"]
    return bool(validation["is_last_batch"]) and count["completed"] == count["ready"]


def _without_step(batches: _Progress, accumulated: int) -> int:
    """Batches since the last optimizer step; there is always a step at the end of an epoch."""
    return 0 if batches["is_last_batch"] else int(batches["current"]["processed"]) % accumulated
