"""The encoding loop: from batches to states or features, with or without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn
from tqdm.auto import tqdm

from mimic_pl.batch import Batch, Inputs
from mimic_pl.features import convert_floats
from mimic_pl.processor import Processor
from mimic_pl.ranges import COUNT, in_range

Side = Literal["mentions", "entities"]
T = TypeVar("T")


class BatchEncoder:
    """Encodes one side of batches on the module's device, in evaluation mode and without gradients.

    The next batch is transferred to the device while the current one is computed.

    Args:
        module: A model or an encoder, which determines device and precision.
        processor: Normalises images on the device and counts failed ones.
        trainer: The Trainer that is running the module, if any: its device, precision and batch hooks are used, and
            progress bars are only shown if it shows them.

    Example:
        >>> run = BatchEncoder(model, model.processor)  # doctest: +SKIP
        >>> [features for _, features in run(loader, "entities", model.encode)]  # doctest: +SKIP
    """

    def __init__(self, module: nn.Module, processor: Processor, trainer: Trainer | None = None) -> None:
        self.module = module
        self.processor = processor
        self.trainer = trainer if trainer is not None and trainer.state.status == TrainerStatus.RUNNING else None

    @torch.no_grad()
    def __call__(
        self, batches: Iterable[Batch], side: Side, encode: Callable[[Inputs], T], description: str | None = None
    ) -> Iterator[tuple[Batch, T]]:
        """Encode one side of each batch.

        Args:
            batches: Batches from a data module's loader or a processor.
            side: ``mentions`` or ``entities``.
            encode: Maps the inputs of that side to the output: ``model.encode``, ``model.entity_states``, ...
            description: Title of the progress bar; without it, none is shown.

        Yields:
            Each batch on the device, and its encoding.
        """
        bar = tqdm(
            self._prefetched(batches),
            total=len(batches) if isinstance(batches, Sized) else None,
            desc=description,
            unit="batch",
            leave=False,
            disable=description is None or not self._shows_progress,
        )
        was_training = self.module.training
        self.module.eval()
        try:
            for batch in bar:
                with self._precision():
                    encoded = encode(batch[side])
                yield batch, encoded
        finally:
            self.module.train(was_training)

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch to the module's device and precision, and normalise its images."""
        if self.trainer is not None:
            # The data module's hook calls the processor's finish.
            moved = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            converted: Batch = self.trainer.precision_plugin.convert_input(moved)
            return converted
        reference = next(self.module.parameters())
        finished = self.processor.finish(move_data_to_device(batch, reference.device))

        def converted_side(inputs: Inputs) -> Inputs:
            return {name: convert_floats(tensor, reference.dtype) for name, tensor in inputs.items()}

        if "mentions" in finished:
            finished["mentions"] = converted_side(finished["mentions"])
        if "entities" in finished:
            finished["entities"] = converted_side(finished["entities"])
        return finished

    @property
    def _shows_progress(self) -> bool:
        if self.trainer is None:
            return True
        return self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero

    def _precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self.trainer is None else self.trainer.precision_plugin.forward_context()

    def _prefetched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        moved: list[Batch] = []
        for batch in batches:
            moved.append(self.to_device(batch))
            if len(moved) == 2:
                yield moved.pop(0)
        yield from moved


class RecordBatches:
    """Batches of records, created when they are iterated over.

    Args:
        records: The records.
        batch_size: Number of records per batch.
        make: Creates a batch.

    Raises:
        ConfigError: ``batch_size`` is below 1.
    """

    @in_range(batch_size=COUNT)
    def __init__(self, records: Sequence[T], batch_size: int, make: Callable[[Sequence[T]], Batch]) -> None:
        self.records = records
        self.batch_size = batch_size
        self.make = make

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.records) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Create each batch."""
        return (
            self.make(self.records[start : start + self.batch_size])
            for start in range(0, len(self.records), self.batch_size)
        )
