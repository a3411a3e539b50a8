r"""Training and evaluation on several processes, and the collective operations that they use.

The same YAML trains on one GPU, on several, and on several machines (Lightning's DDP)::

    mimic-pl fit --config cli_configs/richpedia.yaml --trainer.devices 4

    # two machines with 8 GPUs each: on both of them, HOST being one of the two
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --no-python \
        mimic-pl fit --config cli_configs/richpedia.yaml --trainer.num_nodes 2 --trainer.devices 8

A SLURM job that is requeued when it is preempted needs one command line, which starts the run ``version_JOB``, or
resumes it::

    #SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --requeue --signal=SIGUSR1@120
    srun mimic-pl fit --config cli_configs/richpedia.yaml --trainer.num_nodes 2 --trainer.devices 8

Elsewhere, ``--ckpt_path last`` does so: it resumes the newest run of the same model, data and seed, or starts one.

**Training** computes what one process with the whole batch computes: the entities of all processes' batches are
negatives of each mention, with gradients through the exchange, and an uneven last batch is split evenly. Loss,
gradients and weights of 2 and 3 processes equal those of one to 1e-6. ``--data.batch_size`` is that of one process;
``--model.global_negatives false`` keeps negatives local. Parameters that a configuration does not train (a text unit
alone leaves half of the encoder unused) are found, frozen and named, so that DDP does not wait for them.

**Evaluation** shards the knowledge base: each process encodes and keeps its shard, all rank the same mentions, and
metrics, ranks, predictions and links are identical for any number of processes. Each process writes its shard of an
index on disk; a build that loses a process resumes with any number of processes, and any number reads it.

**Indexing** a large knowledge base works the same way (``--devices``, ``--num_nodes`` and ``--accelerator`` of
``mimic-pl index``), into a folder that all processes see::

    mimic-pl index entities.jsonl --model lightning_logs/version_0 --out my_kb --devices 8

    # two machines with 8 GPUs each, on both of them
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --no-python \
        mimic-pl index entities.jsonl --model lightning_logs/version_0 --out my_kb --devices 8 --num_nodes 2

Ids, order numbers, states and statistics are those of one process, on a CPU bit by bit if ``--batch_size`` divides
4,096. Every process reads the file, encodes its share and writes its own fragments; after each round of 4,096 entities
a process, the first one commits them. Nobody can open the knowledge base before it is complete, and after a kill the
same command, with any number of processes, goes on at that round.

**Linking** shards the knowledge base in the same way (the same options of ``mimic-pl link``)::

    mimic-pl link mentions.jsonl --kb my_kb --out links.jsonl --devices 8

Each process keeps and ranks its shard of the entities, and opens images and encodes a batch of the mentions at a time;
the first one reads the mentions and writes the links. Their file is that of one process, and after a kill the same
command, with any number of processes, goes on at the last batches. Rerankers work as with one process; retrievers
search in one process only.

**SIGTERM or Ctrl-C**, to one process or to all, ends training after the batch with a checkpoint, with exit code 143 or
130; a second Ctrl-C ends it at once. ``--ckpt_path last`` resumes from there, or from the last checkpoint of a run that
was killed, at the very batch: on a CPU with the same number of processes the final weights are equal bit for bit.

Two processes on two cores encode 1.85 times and rank 1.93 times as fast as one process on one core (``mimic-pl
benchmark --rows scaling``).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mimic_pl.errors import MachineError, MimicError, StoreError

T = TypeVar("T")

_CPU = torch.device("cpu")


class ProcessGroup:
    """The processes of the default group; without one, a single process that communicates with no other.

    Every method is collective: all processes must call it, in the same order.

    Args:
        alone: Treat this process as the only one.

    Attributes:
        world_size: Number of processes.
        rank: Rank of this process, from 0.
        failure: The error that was raised on all processes, if one was.
    """

    def __init__(self, alone: bool = False) -> None:
        distributed = not alone and dist.is_available() and dist.is_initialized()
        self.world_size: int = dist.get_world_size() if distributed else 1
        self.rank: int = dist.get_rank() if distributed else 0
        self.failure: Exception | None = None

    def gather_objects(self, own: T) -> list[T]:
        """A small picklable object of every process, by rank."""
        if self.world_size == 1:
            return [own]
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, own)
        return everyone

    def sum(self, own: Tensor) -> Tensor:
        """The sum of a tensor over the processes; it must have the same shape on each."""
        if self.world_size == 1:
            return own
        total = own.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    def gather_integers(self, *own: int, device: torch.device) -> list[list[int]]:
        """A few integers of every process, by rank."""
        if self.world_size == 1:
            return [list(own)]
        mine = torch.tensor(own, device=device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone).tolist()

    def gather(self, own: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[list[Tensor]]:
        """Tensors of every process, by rank: floating-point ones with gradients.

        The gradient of a process's rows is the sum of their gradients on all processes. Losses that are means over a
        process's own rows then have, averaged over the processes as DDP does, the gradient of the mean over all rows.

        Args:
            own: This process's tensors ``[rows, ...]``; only the number of rows may differ between processes.
            sizes: Number of rows of every process; by default it is gathered first.
        """
        if self.world_size == 1:
            return [list(own)]
        if sizes is None:
            sizes = [size for (size,) in self.gather_integers(len(own[0]), device=own[0].device)]
        everyone: list[list[Tensor]] = [list(own) for _ in sizes]
        # Tensors of one dtype are concatenated: few large messages instead of many small ones.
        for dtype in sorted({tensor.dtype for tensor in own}, key=str):
            places = [place for place, tensor in enumerate(own) if tensor.dtype == dtype]
            widths = [own[place].shape[1:].numel() for place in places]
            flat = torch.cat(
                [own[place].reshape(len(own[place]), width) for place, width in zip(places, widths, strict=True)], dim=1
            )
            parts = _Gather.apply(flat, tuple(sizes), self.rank) if dtype.is_floating_point else _gather(flat, sizes)
            for rank, part in enumerate(parts):
                for place, piece in zip(places, part.split(widths, dim=1), strict=True):
                    everyone[rank][place] = piece.reshape(sizes[rank], *own[place].shape[1:])
        return everyone

    def run_together(self, work: Callable[[], T], device: torch.device = _CPU) -> T:
        """Run this process's part of some work; if it fails on any process, raise on all of them.

        Args:
            work: Local work, which communicates with no other process.
            device: A device that the processes can communicate with.

        Raises:
            Exception: The error of the lowest-ranked process that failed.
        """
        if self.world_size == 1:
            return work()
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = _sendable(raised)
        failed = self.sum(torch.tensor(0 if error is None else 1, device=device)).item()
        for rank, found in enumerate(self.gather_objects(error) if failed else []):
            if found is not None:
                self.failure = error if error is not None and rank == self.rank else found
                raise self.failure
        return cast(T, result)

    def require_same(self, work: Callable[[], object], what: str) -> None:
        """Check that something that each process computes is the same on all of them.

        Args:
            work: Computes it, small and hashable.
            what: What differs otherwise, in the plural, for the message.

        Raises:
            StoreError: It is not the same.
        """
        if len({*self.gather_objects(self.run_together(work))}) == 1:
            return
        self.failure = StoreError(
            f"The processes have different {what}. Start all of them with the same command line, and on all machines "
            "with the same files."
        )
        raise self.failure

    def run_on_first(self, work: Callable[[], T], device: torch.device = _CPU) -> T:
        """Run some work on the first process alone; all get its picklable result, or raise its error."""
        result = [self.run_together(lambda: None if self.rank else work(), device)]
        if self.world_size > 1:
            dist.broadcast_object_list(result, src=0, device=device)
        return cast(T, result[0])


def _sendable(error: Exception) -> Exception:
    """The error itself, or one that says the same if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kinds = (kind for kind in type(error).__mro__ if kind.__module__ == MimicError.__module__)
        kind = next(kinds, None)
        said = MachineError(f"{type(error).__name__}: {error}") if kind is None else kind(str(error))
        return said.with_traceback(error.__traceback__)
    return error


def _gather(own: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Rows of every process, sent as tensors padded to one size."""
    sent = own.new_zeros((max(sizes), *own.shape[1:]))
    sent[: len(own)] = own
    received = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(received, sent)
    return tuple(part[:size] for part, size in zip(received, sizes, strict=True))


class _Gather(torch.autograd.Function):
    """:func:`_gather` with a gradient, which ``torch.distributed.all_gather`` lacks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: tuple[int, ...], rank: int) -> tuple[Tensor, ...]:
        """Rows of every process."""
        ctx.sizes, ctx.rank = sizes, rank
        return _gather(own, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradients of this process's rows, summed over all processes."""
        total = torch.cat(gradients)
        dist.all_reduce(total)
        start = sum(ctx.sizes[: ctx.rank])
        return total[start : start + ctx.sizes[ctx.rank]], None, None
