"""SIGTERM and SIGINT: a checkpoint, and an end that all processes agree upon."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import distributed


class Interrupted(SystemExit):
    """Training ended on a signal, after a checkpoint. A program that does not catch it exits with its code.

    Attributes:
        signal: The signal's number.
        code: 128 + the signal's number in the first process of a machine; 0 in its others, because a launcher takes
            another code for a crash and kills the first process before its time.
    """

    def __init__(self, number: int, first: bool) -> None:
        super().__init__(128 + number if first else 0)
        self.signal = number


class Interruption(Callback):
    """Ends training on SIGTERM (exit code 143) or SIGINT (Ctrl-C, 130) with a checkpoint, to go on from exactly.

    The handler only takes a note. At the end of each batch of training or validation all processes look together
    whether one of them has got a signal (a number between their hosts, by gloo; the devices go on meanwhile), so it is
    enough that one gets it, whichever. Then they save ``last.ckpt`` where :class:`ModelCheckpoint` saves its own, and
    end. A signal before the first batch is heeded after it. A validation that is ended so is done anew by the resumed
    run; see :class:`~mimic_pl.callbacks.ExactResume`.

    A single process does not wait for the end of a batch while the knowledge base is encoded for a validation. A second
    SIGINT kills the process at once.

    Under SLURM with Lightning's requeueing, the signal for it (SIGUSR1) does what Lightning does, a checkpoint
    ``hpc_ckpt_N.ckpt`` and ``scontrol requeue``, but at the end of a batch and by all processes. SIGTERM, which
    Lightning means to ignore there, is treated as anywhere.

    It is one of the callbacks of ``mimic-pl fit``; in a list of your own it comes last.

    Raises:
        Interrupted: On a signal.
    """

    def __init__(self) -> None:
        self._received = 0
        self._group: Any = None
        self._requeue: dict[int, Any] = {}
        self._installed = False
        self._alone = self._first = True
        self._encoding = False
        self._ended = False

    # ---- signals ------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the way by which processes agree, and listen as soon as Lightning has set handlers of its own."""
        self._received, self._installed, self._ended = 0, False, False
        self._group = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        self._alone, self._first = trainer.world_size == 1, trainer.local_rank == 0
        connector = trainer._signal_connector

        def register() -> None:
            del connector.register_signal_handlers
            connector.register_signal_handlers()
            self._listen(trainer)

        connector.register_signal_handlers = register  # type: ignore[method-assign]

    def _listen(self, trainer: Trainer) -> None:
        # At the end of training Lightning sets the handlers again that were there before its own.
        if threading.current_thread() is not threading.main_thread():
            return
        self._installed = True
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            number = int(environment.requeue_signal)
            self._requeue = {number: signal.signal(number, self._receive)}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._encoding and self._alone and number not in self._requeue:
            raise Interrupted(number, self._first)

    def _agreed(self) -> int:
        """The signal that any of the processes has got; 0 if none has."""
        if self._group is None:
            return self._received
        number = torch.tensor(self._received)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group)
        return int(number)

    # ---- where training may end ---------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, if there was a signal."""
        self._end_if_agreed(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The knowledge base is encoded next, during which nothing else changes."""
        self._encoding = trainer.state.fn == "fit" and not trainer.sanity_checking and self._installed
        if self._encoding and self._alone and self._received and self._received not in self._requeue:
            raise Interrupted(self._received, self._first)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """It is encoded."""
        self._encoding = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End, if there was a signal."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_if_agreed(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is encoded, and there was no batch."""
        self._encoding = False

    def _end_if_agreed(self, trainer: Trainer) -> None:
        number = self._agreed()
        if number in self._requeue:
            self._received = 0
            self._requeue[number](number, None)
        elif number:
            raise Interrupted(number, self._first)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if the exception is an end on a signal, and say so."""
        self._encoding = False
        if not isinstance(exception, Interrupted) or self._ended:
            return
        self._ended = True
        saved = _save_last(trainer, pl_module)
        if trainer.is_global_zero:
            where = f"--ckpt_path last goes on from {saved}." if saved else "The run keeps no checkpoints."
            name = signal.Signals(exception.signal).name
            print(f"Ended by {name} after step {trainer.global_step}. {where}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no longer: what is left to do is done before the process ends."""
        self._received = 0


def _save_last(trainer: Trainer, pl_module: LightningModule) -> Path | None:
    """Save the checkpoint to go on from, as the newest of the run; None if the run keeps none."""
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    if not savers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if trainer.validating:
        # While a validation lasts, the average stands in the model's place.
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_validation_epoch_end(trainer, pl_module)
    saver = savers[0]
    path = saver.last_model_path or saver.format_checkpoint_name({}, saver.CHECKPOINT_NAME_LAST)
    saver.last_model_path = path  # ModelCheckpoint writes its next one there, and not beside it
    trainer.save_checkpoint(path, weights_only=False)
    return Path(path)
