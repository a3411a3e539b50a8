"""Which items a process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DistributedSampler, Sampler


class TrainSampler(DistributedSampler[int]):
    """Shuffles by seed and epoch, and yields ``epoch * len(dataset) + index``.

    The number tells a data set both which item and which epoch it is, so that what is random about an item (which of
    an entity's pictures) depends on seed, epoch and index alone: not on workers, and not on where a run was resumed.
    Lightning calls :meth:`set_epoch`, and leaves a distributed sampler as it is.
    """

    def __iter__(self) -> Iterator[int]:
        """Positions of this process's items, each shifted by the epoch."""
        size = len(self.dataset)  # type: ignore[arg-type]
        return (self.epoch * size + index for index in super().__iter__())


class SetSampler(DistributedSampler[tuple[int, list[int]]]):
    """Batches of several sets, each of one set: the set's number, and addresses in it.

    An epoch has every batch of every set, in an order that depends on seed and epoch alone; all processes take batches
    of the same set at the same time, and have equally many.

    Args:
        samplers: A sampler for each set, all for the same process.
        batch_sizes: Items in a batch of each set.
        seed: Decides the order of the batches.
    """

    def __init__(self, samplers: Sequence[TrainSampler], batch_sizes: Sequence[int], seed: int = 0) -> None:
        first = samplers[0]
        super().__init__(first.dataset, first.num_replicas, first.rank, seed=seed)
        self.samplers = samplers
        self.batch_sizes = batch_sizes

    def set_epoch(self, epoch: int) -> None:
        """Turn to an epoch."""
        super().set_epoch(epoch)
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of this process's batches."""
        return sum(-(-len(own) // size) for own, size in zip(self.samplers, self.batch_sizes, strict=True))

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """This process's batches."""
        batches = []
        for number, (sampler, size) in enumerate(zip(self.samplers, self.batch_sizes, strict=True)):
            addresses = list(sampler)
            batches += [(number, addresses[at : at + size]) for at in range(0, len(addresses), size)]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return (batches[place] for place in torch.randperm(len(batches), generator=generator).tolist())


class EvalSampler(DistributedSampler[int]):
    """Every item from ``start`` on exactly once over all processes, in order: none comes twice to even them out."""

    def __init__(self, dataset: Sized, num_replicas: int = 1, rank: int = 0, start: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        self.positions = range(start + rank, len(dataset), num_replicas)
        self.num_samples = len(self.positions)
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[int]:
        """Positions of this process's items."""
        return iter(self.positions)


class LengthSampler(Sampler[int]):
    """Every item once, the longest first, and those of one length in order.

    Batches are of items of similar length, and the first one needs the most memory: what does not fit fails at once.

    Args:
        lengths: Length of each item ``[items]``.
    """

    def __init__(self, lengths: npt.NDArray[Any]) -> None:
        self.order = np.argsort(-lengths.astype(np.int64), kind="stable")

    def __len__(self) -> int:
        """Number of items."""
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        """Positions of the items."""
        return iter(self.order.data)


def first_epoch(trainer: Any) -> int:
    """The epoch that training begins with: 0, or on a resumed run the one after the checkpoint's.

    Lightning tells the sampler before each epoch, but on a resumed run only after the workers have begun to fetch.
    """
    if trainer is None:
        return 0
    loop = trainer.fit_loop
    begun: int = loop.epoch_progress.current.ready
    return begun if begun == 0 or loop.epoch_loop.batch_progress.is_last_batch else begun - 1


def draw(count: int, seed: int, epoch: int, index: int) -> int:
    """A number in ``[0, count)`` that depends on nothing but the arguments."""
    generator = torch.Generator().manual_seed(hash((seed, epoch, index)) & 0x7FFF_FFFF_FFFF_FFFF)
    return int(torch.randint(count, (1,), generator=generator))
