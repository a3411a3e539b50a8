"""Which items a process sees, in which batches and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from mimic_pl.errors import ConfigError

T = TypeVar("T")


class _Resumed(DistributedSampler[T]):
    """A sampler of batches that can begin in the middle of an epoch."""

    def __init__(self, dataset: Sized, processes: int, rank: int, seed: int) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.taken: dict[int, int] = {}

    def begin(self, epoch: int, batches: int) -> None:
        """Turn to an epoch of which the run that is resumed has taken so many batches."""
        self.set_epoch(epoch)
        self.taken = {epoch: batches} if batches else {}


class TrainSampler(_Resumed[list[int]]):
    """Shuffles by seed and epoch, and yields batches of ``epoch * len(dataset) + index``.

    The number tells a data set both which item and which epoch it is, so that what is random about an item (which of
    an entity's images) depends on seed, epoch and index alone: not on workers, and not on where a run was resumed.
    Lightning calls :meth:`set_epoch`, and leaves a distributed sampler as it is.

    Several processes share each batch of ``processes * batch_size`` items: together they see what one process with
    that batch size sees, every item once an epoch. The last, smaller batch is shared out evenly, too; if it has fewer
    items than there are processes, the batch before takes them in.

    Args:
        dataset: What is sampled.
        batch_size: Items in a batch of one process.
        processes: Number of processes.
        rank: Which one this is.
        seed: Decides the order.
    """

    def __init__(self, dataset: Sized, batch_size: int, processes: int = 1, rank: int = 0, seed: int = 0) -> None:
        super().__init__(dataset, processes, rank, seed)
        if len(dataset) < processes:
            raise ConfigError(
                f"There are {len(dataset)} training mentions for {processes} processes. Take fewer (--trainer.devices)."
            )
        self.batch_size = batch_size
        self.total_size = len(dataset)

    def settings(self) -> dict[str, Any]:
        """What decides the batches of an epoch."""
        return {
            "mentions": self.total_size,
            "batch_size": self.batch_size,
            "processes": self.num_replicas,
            "seed": self.seed,
        }

    def __len__(self) -> int:
        """Number of batches of an epoch, the same for all processes."""
        return len(self._starts()) - 1

    def __iter__(self) -> Iterator[list[int]]:
        """This process's batches that are left of the epoch."""
        return islice(self._epoch_batches(), self.taken.get(self.epoch, 0), None)

    def _epoch_batches(self) -> Iterator[list[int]]:
        size = self.total_size
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(size, generator=generator).tolist()
        return self._batches([self.epoch * size + index for index in order])

    def _starts(self) -> list[int]:
        """Where the batches of all processes together begin, and where the last one ends."""
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


class SetSampler(_Resumed[tuple[int, list[int]]]):
    """Batches of several sets, each of one set: the set's number, and addresses in it.

    An epoch has every batch of every set, in an order that depends on seed and epoch alone; all processes take batches
    of the same set at the same time, and have equally many.

    Args:
        samplers: A sampler for each set, all for the same process.
        seed: Decides the order of the batches.
    """

    def __init__(self, samplers: Sequence[TrainSampler], seed: int = 0) -> None:
        first = samplers[0]
        super().__init__(first.dataset, first.num_replicas, first.rank, seed)  # type: ignore[arg-type]
        self.samplers = samplers

    def set_epoch(self, epoch: int) -> None:
        """Turn to an epoch."""
        super().set_epoch(epoch)
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def settings(self) -> dict[str, Any]:
        """What decides the batches of an epoch."""
        return {"seed": self.seed, "sets": [sampler.settings() for sampler in self.samplers]}

    def __len__(self) -> int:
        """Number of this process's batches of an epoch."""
        return sum(map(len, self.samplers))

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """This process's batches that are left of the epoch."""
        batches = [(number, batch) for number, sampler in enumerate(self.samplers) for batch in sampler]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(batches), generator=generator).tolist()
        return (batches[place] for place in order[self.taken.get(self.epoch, 0) :])


class EvalSampler(DistributedSampler[list[int]], SequentialSampler):
    """Batches of items in order, the same ones for any number of processes: each batch goes to one process.

    Processes take turns. They must take equally many, since they rank together: one that has none left for the last
    turn gets a single item numbered from ``len(dataset)`` on, which is to be computed and not counted.

    A batch's content decides the last bits of what is computed from it, so results do not depend on the number of
    processes. Lightning leaves a sampler of these kinds as it is.

    Args:
        dataset: What is sampled.
        batch_size: Items in a batch.
        processes: Number of processes.
        rank: Which one this is.
    """

    def __init__(self, dataset: Sized, batch_size: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, processes, rank, shuffle=False)  # type: ignore[arg-type]
        size = len(dataset)
        starts = range(rank * batch_size, size, processes * batch_size)
        self.batches = [list(range(start, min(start + batch_size, size))) for start in starts]
        turns = -(-size // (processes * batch_size))
        self.batches += [[size]] * (turns - len(self.batches))

    def __len__(self) -> int:
        """Number of batches, the same for all processes."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        """This process's batches."""
        return iter(self.batches)


class EntitySampler(Sampler[list[int]]):
    """Batches of entities, each of which goes to one process.

    Args:
        entities: How many there are.
        batch_size: Entities in a batch.
        processes: Number of processes.
        rank: Which one this is.
        lengths: Length of each entity's text, int ``[entities]``. Then batches are of texts of similar length and the
            longest come first (what does not fit the memory fails at once), and processes take turns. Otherwise
            batches are in order, and each process has a stretch of the knowledge base.
        first: In order: begin with the batch that holds this one of the process's entities.
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
        # Whole batches: a batch's content decides the last bits of what is computed from it.
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
    """Where training begins: an epoch, and the number of its batches that the run that is resumed has taken.

    Lightning goes on counting in the middle of an epoch, but from the loader it takes what comes first. And it tells
    the sampler the epoch before each one, but on a resumed run only after the workers have begun to fetch.
    """
    if trainer is None:
        return 0, 0
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if epochs.processed == epochs.ready:
        return epochs.ready, 0
    if batches.is_last_batch and batches.current.completed < batches.current.processed:
        return epochs.ready, 0  # without ExactResume, Lightning leaves the rest of such an epoch out
    if epochs.started < epochs.ready:
        return epochs.ready - 1, 0
    return epochs.ready - 1, batches.current.processed


def draw(count: int, seed: int, epoch: int, index: int) -> int:
    """A number in ``[0, count)`` that depends on nothing but the arguments."""
    generator = torch.Generator().manual_seed(hash((seed, epoch, index)) & 0x7FFF_FFFF_FFFF_FFFF)
    return int(torch.randint(count, (1,), generator=generator))
