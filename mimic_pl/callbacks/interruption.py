"""Saves a checkpoint and ends training on SIGTERM and SIGINT, synchronised over all processes."""

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
    """Training was ended by a signal, after saving a checkpoint. If uncaught, the program exits with its code.

    Attributes:
        signal: The signal's number.
        code: 128 + the signal's number in the first process of a machine; 0 in the others, since a launcher treats any
            other code as a crash and kills the first process prematurely.
    """

    def __init__(self, number: int, first: bool) -> None:
        super().__init__(128 + number if first else 0)
        self.signal = number


class Interruption(Callback):
    """Ends training on SIGTERM (exit code 143) or SIGINT (Ctrl-C, 130) with a checkpoint for exact resume.

    The handler only records the signal. At the end of each training or validation batch, all processes check together
    whether any of them received one (by all-reducing a number over gloo, while the devices keep computing), so a signal
    to a single process is enough. Then they save ``last.ckpt`` in the folder of :class:`ModelCheckpoint`, and exit. A
    signal before the first batch takes effect after it. An interrupted validation is repeated by the resumed run; see
    :class:`~mimic_pl.callbacks.ExactResume`.

    While the knowledge base is encoded for a validation, a single process exits at once. A second SIGINT kills the
    process immediately.

    Under SLURM with Lightning's automatic requeueing, its signal (SIGUSR1) does what Lightning does (a checkpoint
    ``hpc_ckpt_N.ckpt`` and ``scontrol requeue``), but at the end of a batch and on all processes. SIGTERM, which
    Lightning ignores there, is handled as elsewhere.

    It is one of the callbacks of ``mimic-pl fit``; in a custom list of callbacks, it must be last.

    Raises:
        Interrupted: On a signal.
    """

    def __init__(self) -> None:
        self._received = 0
        self._group: Any = None
        self._requeue: dict[int, Any] = {}
        self._installed = False
        self._single_process = self._local_rank_zero = True
        self._encoding = False
        self._handled = False

    # ---- signals ------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the process group for the signal, and install handlers once Lightning has installed its own."""
        self._received, self._installed, self._handled = 0, False, False
        self._group = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        self._single_process, self._local_rank_zero = trainer.world_size == 1, trainer.local_rank == 0
        connector = trainer._signal_connector

        def register() -> None:
            del connector.register_signal_handlers
            connector.register_signal_handlers()
            self._install_handlers(trainer)

        connector.register_signal_handlers = register  # type: ignore[method-assign]

    def _install_handlers(self, trainer: Trainer) -> None:
        # At the end of training, Lightning restores the original handlers.
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
        if self._encoding and self._single_process and number not in self._requeue:
            raise Interrupted(number, self._local_rank_zero)

    def _signal_of_any_process(self) -> int:
        """The signal that any of the processes received; 0 if none did."""
        if self._group is None:
            return self._received
        number = torch.tensor(self._received)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group)
        return int(number)

    # ---- where training may be interrupted ----------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Interrupt training if there was a signal."""
        self._interrupt_if_signalled(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on the knowledge base is encoded, which can be interrupted at any time."""
        self._encoding = trainer.state.fn == "fit" and not trainer.sanity_checking and self._installed
        if self._encoding and self._single_process and self._received and self._received not in self._requeue:
            raise Interrupted(self._received, self._local_rank_zero)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The knowledge base is encoded."""
        self._encoding = False

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Interrupt training if there was a signal."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._interrupt_if_signalled(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The knowledge base is encoded, even if there was no batch."""
        self._encoding = False

    def _interrupt_if_signalled(self, trainer: Trainer) -> None:
        number = self._signal_of_any_process()
        if number in self._requeue:
            self._received = 0
            self._requeue[number](number, None)
        elif number:
            raise Interrupted(number, self._local_rank_zero)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """If training was interrupted by a signal, save a checkpoint and print a message."""
        self._encoding = False
        if not isinstance(exception, Interrupted) or self._handled:
            return
        self._handled = True
        saved = _save_last(trainer, pl_module)
        if trainer.is_global_zero:
            where = f"Resume from {saved} with --ckpt_path last." if saved else "Checkpointing is disabled."
            name = signal.Signals(exception.signal).name
            print(f"Interrupted by {name} after step {trainer.global_step}. {where}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore signals from now on: the remaining work is finished before the process exits."""
        self._received = 0


def _save_last(trainer: Trainer, pl_module: LightningModule) -> Path | None:
    """Save a checkpoint to resume from, as the newest of the run; None if checkpointing is disabled."""
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    if not savers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if trainer.validating:
        # During validation, the model has the averaged weights.
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_validation_epoch_end(trainer, pl_module)
    saver = savers[0]
    path = saver.last_model_path or saver.format_checkpoint_name({}, saver.CHECKPOINT_NAME_LAST)
    saver.last_model_path = path  # ModelCheckpoint overwrites this one next
    trainer.save_checkpoint(path, weights_only=False)
    return Path(path)
