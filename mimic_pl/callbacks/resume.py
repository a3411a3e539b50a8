"""Exact resume: a run that goes on from a checkpoint of any moment does what the undisturbed one would have done."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

_Progress = dict[str, Any]


class ExactResume(Callback):
    """Puts Lightning's counters, as a checkpoint holds them, into a state from which the rest of the run is the same.

    From the end of an epoch Lightning goes on exactly. From elsewhere it does not, and this callback sees to it that

    - a validation that was due after the checkpoint's batch, or was interrupted, is done from its beginning (Lightning
      leaves it out, and with the epoch's last batch the end of the epoch as well);
    - batches of an accumulation that had not led to a step yet are taken again, their gradients being lost;
    - with ``max_steps``, a finished epoch is not ended a second time;
    - a run that had stopped early has stopped.

    The sampler leaves out the batches that are taken (:meth:`~mimic_pl.data.sampler.TrainSampler.begin`), dropout is
    seeded by step, random images by epoch and item, and the other callbacks keep their own state. So on the CPU, with
    the same number of processes, the weights are equal to the last bit. What is not: means over the epoch that was
    interrupted (``train/loss_epoch``), which are of its batches since, and a plateau scheduler's look at it.

    It is one of the callbacks of ``mimic-pl fit``; a Trainer of your own takes it in ``callbacks``.
    """

    def __init__(self) -> None:
        self._between_epochs = False
        self._within_epoch = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Change the counters before Lightning reads them."""
        self._between_epochs = self._within_epoch = False
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
                # One batch begun and none done is how Lightning knows a validation that has to be done.
                begun = {"ready": 1, "started": 1, "processed": int(again > 0), "completed": int(again > 0)}
                validation.update(total=dict(begun), current=dict(begun), is_last_batch=again > 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set what follows from the loaders, which are there by now."""
        loop = trainer.fit_loop
        if self._between_epochs:
            # Lightning takes any run with max_steps for one that goes on within an epoch.
            loop._restarting = False
            loop.epoch_loop.restarting = False
            loop.epoch_loop.reset_restart_stage()
        if self._within_epoch:
            assert loop._data_fetcher is not None
            validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
            # The step of the loggers, which is counted on after a batch's validation.
            loop.epoch_loop._batches_that_stepped = trainer.global_step - validates
            if loop.epoch_loop._num_ready_batches_reached() and not validates:
                loop._data_fetcher.done = True
        self._between_epochs = self._within_epoch = False
        for stopping in trainer.early_stopping_callbacks:
            if stopping.wait_count >= stopping.patience or stopping.stopped_epoch:
                rank_zero_info("The run had stopped early.")
                trainer.should_stop = True


def _validated(batches: _Progress, validation: _Progress) -> bool:
    """Whether the checkpoint was taken at the end of the validation after its last batch."""
    if batches["current"]["completed"] < batches["current"]["processed"]:
        return False  # it was taken at the end of the batch
    count = validation["current"]
    return bool(validation["is_last_batch"]) and count["completed"] == count["ready"]


def _without_step(batches: _Progress, accumulated: int) -> int:
    """Batches since the last step of the optimizer, which steps at the end of an epoch in any case."""
    return 0 if batches["is_last_batch"] else int(batches["current"]["processed"]) % accumulated
