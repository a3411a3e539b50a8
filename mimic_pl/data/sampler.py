"""Samplers: which items each process gets, in which batches and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import chain, islice, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from mimic_pl.errors import ConfigError

T = TypeVar("T")


class _ResumableSampler(DistributedSampler[T]):
    """A batch sampler that can start in the middle of an epoch."""

    def __init__(self, dataset: Sized, processes: int, rank: int, seed: int) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.consumed: dict[int, int] = {}

    def start_at(self, epoch: int, batches: int) -> None:
        """Go to an epoch of which the resumed run has already consumed some batches."""
        self.set_epoch(epoch)
        self.consumed = {epoch: batches} if batches else {}


class TrainSampler(_ResumableSampler[list[int]]):
    """Shuffles by seed and epoch, and yields batches of addresses ``epoch * len(dataset) + index``.

    An address encodes both item and epoch, so that random choices for an item (such as one of an entity's images)
    depend on seed, epoch and index alone: not on workers, and not on where a run was resumed. Lightning calls
    :meth:`set_epoch`, and does not replace a distributed sampler.

    Several processes share each batch of ``processes * batch_size`` items: together they get the batches of a single
    process with that batch size, every item once per epoch. The last, smaller batch is distributed evenly, too; if it
    has fewer items than there are processes, it is merged into the previous batch.

    Args:
        dataset: The data set to sample from.
        batch_size: Items per batch and process.
        processes: Number of processes.
        rank: Rank of this process.
        seed: Seed of the order.
        groups: For each item the numbers of the groups that it may be put in, if any. In each epoch it is put in one of
            them, which is drawn, and the items of a group follow each other.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(dataset, processes, rank, seed)
        if len(dataset) < processes:
            raise ConfigError(
                f"There are {len(dataset)} training mentions for {processes} processes. Use fewer (--trainer.devices)."
            )
        self.batch_size = batch_size
        self.total_size = len(dataset)
        self.groups = groups

    def settings(self) -> dict[str, Any]:
        """The settings that determine the batches of an epoch."""
        settings = {
            "mentions": self.total_size,
            "batch_size": self.batch_size,
            "processes": self.num_replicas,
            "seed": self.seed,
        }
        return settings if self.groups is None else {**settings, "groups": len({*chain(*self.groups)})}

    def __len__(self) -> int:
        """Number of batches per epoch, the same for all processes."""
        return len(self._starts()) - 1

    def __iter__(self) -> Iterator[list[int]]:
        """This process's remaining batches of the epoch."""
        return islice(self._epoch_batches(), self.consumed.get(self.epoch, 0), None)

    def _epoch_batches(self) -> Iterator[list[int]]:
        size = self.total_size
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(size, generator=generator).tolist()
        if self.groups is not None:
            order = self._grouped(order, self.groups, generator)
        return self._batches([self.epoch * size + index for index in order])

    def _grouped(self, order: list[int], groups: Sequence[Sequence[int]], generator: torch.Generator) -> list[int]:
        """The same items with those of a group together, and the groups, large and small ones, in random order."""
        draws = torch.randint(1 << 31, (len(order),), generator=generator).tolist()
        members: dict[int, list[int]] = {}
        for index in order:
            own = groups[index]
            group = own[draws[index] % len(own)] if own else -1 - index  # an item alone
            members.setdefault(group, []).append(index)
        together = list(members.values())
        return [index for n in torch.randperm(len(together), generator=generator).tolist() for index in together[n]]

    def _starts(self) -> list[int]:
        """Start offsets of the global batches, and the end of the last one."""
        size = self.total_size
        starts = list(range(0, size, self.num_replicas * self.batch_size))
        if len(starts) > 1 and size - starts[-1] < self.num_replicas:
            starts.pop()
        return [*starts, size]

    def _batches(self, order: Sequence[int]) -> Iterator[list[int]]:
        starts = self._starts()
        for start, stop in pairwise(starts):
            cuts = [start + (stop - start) * rank // self.num_replicas for rank in (self.rank, self.rank + 1)]
            yield list(order[cuts[0] : cuts[1]])


class MultiDatasetSampler(_ResumableSampler[tuple[int, list[int]]]):
    """Batches from several data sets, each from one: the data set's number, and addresses in it.

    An epoch contains every batch of every data set, in an order that depends on seed and epoch alone; in each step all
    processes get a batch of the same data set.

    Args:
        samplers: A sampler for each data set, all for the same process.
        seed: Seed of the order of the batches.
    """

    def __init__(self, samplers: Sequence[TrainSampler], seed: int = 0) -> None:
        first = samplers[0]
        super().__init__(first.dataset, first.num_replicas, first.rank, seed)  # type: ignore[arg-type]
        self.samplers = samplers

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        super().set_epoch(epoch)
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the batches of an epoch."""
        return {"seed": self.seed, "sets": [sampler.settings() for sampler in self.samplers]}

    def __len__(self) -> int:
        """Number of batches per epoch, the same for all processes."""
        return sum(map(len, self.samplers))

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """This process's remaining batches of the epoch."""
        batches = [(number, batch) for number, sampler in enumerate(self.samplers) for batch in sampler]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(batches), generator=generator).tolist()
        return (batches[number] for number in order[self.consumed.get(self.epoch, 0) :])


class EvalSampler(DistributedSampler[list[int]], SequentialSampler):
    """Batches of items in order, the same for any number of processes: batches are assigned round-robin.

    All processes must have the same number of batches, since ranking is collective: a process without a batch in the
    last round gets a single padding item with a number from ``len(dataset)`` on, which is computed but not counted.

    Since the content of a batch affects the last bits of its results, identical batches make results independent of the
    number of processes. Lightning does not replace a sampler of these classes.

    Args:
        dataset: The data set to sample from.
        batch_size: Items per batch.
        processes: Number of processes.
        rank: Rank of this process.
    """

    def __init__(self, dataset: Sized, batch_size: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, processes, rank, shuffle=False)  # type: ignore[arg-type]
        size = len(dataset)
        starts = range(rank * batch_size, size, processes * batch_size)
        self.batches = [list(range(start, min(start + batch_size, size))) for start in starts]
        rounds = -(-size // (processes * batch_size))
        self.batches += [[size]] * (rounds - len(self.batches))

    def __len__(self) -> int:
        """Number of batches, the same for all processes."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        """This process's batches."""
        return iter(self.batches)


class EntitySampler(Sampler[list[int]]):
    """Batches of entities, distributed over the processes.

    Args:
        entities: Number of entities.
        batch_size: Entities per batch.
        processes: Number of processes.
        rank: Rank of this process.
        lengths: Length of each entity's text, int ``[entities]``. If given, batches contain texts of similar length,
            longest first (so that out-of-memory errors occur at once), and are assigned round-robin. Otherwise batches
            are in order, and each process has a contiguous shard of the knowledge base.
        first: Without ``lengths``: start at the batch that contains this entity of the shard.
    """

    def __init__(
        self,
        entities: int,
        batch_size: int,
        processes: int = 1,
        rank: int = 0,
        lengths: npt.NDArray[Any] | None = None,
        first: int = 0,
    ) -> None:
        # Shards consist of whole batches: the content of a batch affects the last bits of its results.
        starts = range(0, entities, batch_size)
        if lengths is None:
            order = np.arange(entities)
            own = starts[len(starts) * rank // processes : len(starts) * (rank + 1) // processes]
        else:
            order = np.argsort(-lengths.astype(np.int64), kind="stable")
            own = starts[rank::processes]
        batches = [order[start : start + batch_size] for start in own]
        self.positions: npt.NDArray[np.int64] = np.sort(np.concatenate([order[:0], *batches]))
        self.batches = batches[first // batch_size :]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Positions of each batch's entities."""
        return (batch.tolist() for batch in self.batches)


def resume_point(trainer: Any) -> tuple[int, int]:
    """Where training starts: an epoch, and the number of its batches that the resumed run has already consumed.

    Lightning restores its batch counter in the middle of an epoch, but starts at the loader's first batch. Also, it
    calls ``set_epoch`` before each epoch, but in a resumed run only after the workers have started to fetch.
    """
    if trainer is None:
        return 0, 0
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if epochs.processed == epochs.ready:
        return epochs.ready, 0
    if batches.is_last_batch and batches.current.completed < batches.current.processed:
        return epochs.ready, 0  # without ExactResume, Lightning skips the rest of such an epoch
    if epochs.started < epochs.ready:
        return epochs.ready - 1, 0
    return epochs.ready - 1, batches.current.processed


def draw(count: int, seed: int, epoch: int, index: int) -> int:
    """A random number in ``[0, count)`` that depends only on the arguments."""
    generator = torch.Generator().manual_seed(hash((seed, epoch, index)) & 0x7FFF_FFFF_FFFF_FFFF)
    return int(torch.randint(count, (1,), generator=generator))
