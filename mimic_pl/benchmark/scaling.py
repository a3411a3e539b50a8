"""Encoding and ranking with two processes on two cores, against one process on one core."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from mimic_pl.benchmark.encoders import build_encoder, random_inputs
from mimic_pl.benchmark.fresh import fresh_processes
from mimic_pl.benchmark.problem import DIMS, MENTIONS_AT_ONCE, random_problem, rows
from mimic_pl.benchmark.report import Row, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Timing
from mimic_pl.distributed import ProcessGroup
from mimic_pl.ranking import MemoryIndex, Ranker, Shard
from mimic_pl.units import Matcher, published_units

_PROCESSES = 2
_BATCH = 32

Times = dict[str, list[float]]


def scaling(settings: Settings) -> Row:
    """Measure one process alone and two sharing the work, interleaved, each with one thread on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        method = fresh_processes().get_start_method()
        start_processes(_measure, (folder, settings), _PROCESSES, start_method=method)  # type: ignore[no-untyped-call]
        times: dict[str, Times] = torch.load(Path(folder) / "times.pt")
    lines = []
    for what, unit in (("encoding", "entity"), ("ranking", "pair")):
        shared, alone = (Timing(times[what][name]) for name in ("shared", "alone"))
        lines.append(timed(f"{what}, {_PROCESSES} processes", shared, "one process", alone, unit))
    entities, mentions = _sizes(settings)
    return {
        "title": f"{_PROCESSES} processes with one core each against one process on one core (CPU, gloo)",
        "setting": {"encoder": settings.encoder, "entities ranked": entities, "mentions": mentions},
        "lines": lines,
    }


def _sizes(settings: Settings) -> tuple[int, int]:
    return settings.size(8192, 150), settings.size(2 * MENTIONS_AT_ONCE, 24)


def _measure(rank: int, folder: str, settings: Settings) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=_PROCESSES)
    try:
        works = {"encoding": _encoding(settings), "ranking": _ranking(settings)}
        times: dict[str, Times] = {what: {"alone": [], "shared": []} for what in works}
        for turn in range(settings.num_rounds + 1):
            for what, (items, alone, shared) in works.items():
                for name, work in (("alone", alone if rank == 0 else _nothing), ("shared", shared)):
                    dist.barrier()
                    start = time.perf_counter()
                    work()
                    dist.barrier()
                    if turn:  # the first is a warm-up
                        times[what][name].append((time.perf_counter() - start) / items)
        if rank == 0:
            torch.save(times, Path(folder) / "times.pt")
    finally:
        dist.destroy_process_group()


def _encoding(settings: Settings) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """Number of entities, and functions to encode all of them and a process's shard."""
    encoder = build_encoder(settings.encoder, settings.seed).eval()
    matcher = Matcher(DIMS, published_units()).eval()
    generator = torch.Generator().manual_seed(settings.seed)
    count = settings.size(16, 2)
    batches = [random_inputs(encoder, _BATCH, generator, "cpu") for _ in range(count)]
    rank = ProcessGroup().rank

    def encode(part: slice) -> None:
        with torch.no_grad():
            for batch in batches[part]:
                matcher.entity(encoder(**batch))

    return count * _BATCH, lambda: encode(slice(None)), lambda: encode(slice(rank, None, _PROCESSES))


def _ranking(settings: Settings) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """Number of pairs, and functions to rank all mentions and a process's share of them."""
    processes = ProcessGroup()
    entities, mentions = _sizes(settings)
    problem = random_problem(mentions, entities, min(entities, 1000), settings.seed, "cpu")
    # Interleaved, since in contiguous shards one process would have all golds, which are at the beginning.
    local = torch.arange(processes.rank, entities, processes.world_size)
    part = MemoryIndex(shard=Shard(local, entities, processes))
    states = {unit: dict(state) for unit, state in problem.index.select(local).states.items()}
    part.add(problem.index.ids_of(local), states, local)
    local_mentions = slice(
        mentions * processes.rank // processes.world_size, mentions * (processes.rank + 1) // processes.world_size
    )
    ranker, size = Ranker(), MENTIONS_AT_ONCE

    def alone() -> None:
        for start in range(0, mentions, size):
            block = slice(start, start + size)
            ranker(problem.matcher, rows(problem.states, block), problem.index, problem.gold[block])

    def shared() -> None:
        # All processes together rank as many mentions at once as a single process.
        for start in range(local_mentions.start, local_mentions.stop, size // processes.world_size):
            block = slice(start, min(start + size // processes.world_size, local_mentions.stop))
            ranker(problem.matcher, rows(problem.states, block), part, problem.gold[block])

    return mentions * entities, alone, shared


def _nothing() -> None:
    """Idle while another process works alone."""
