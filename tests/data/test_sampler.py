"""Every item is drawn exactly once, for any size, number of processes, seed and epoch."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain, groupby
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data.loader import TrainLoader
from mimic_pl.data.sampler import EntitySampler, EvalSampler, TrainSampler, draw, resume_point
from mimic_pl.errors import ConfigError

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 9)
processes = st.integers(1, 3)
seeds = st.integers(0, 2**31)


def batches(size, seed, epoch, batch_size=7, count=1, rank=0):
    sampler = TrainSampler(range(size), batch_size, count, rank, seed)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(sampler) == len(drawn)
    assert {address // size for batch in drawn for address in batch} <= {epoch}
    return [[address % size for address in batch] for batch in drawn]


@given(sizes, batch_sizes, processes)
def test_evaluation_has_the_same_batches_however_many_processes_share_them(size, batch_size, count):
    one = list(EvalSampler(range(size), batch_size))
    assert list(chain(*one)) == list(range(size))
    samplers = [EvalSampler(range(size), batch_size, count, rank) for rank in range(count)]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {-(-len(one) // count)} == {len(sampler) for sampler in samplers}
    by_turns = [batch for turn in zip(*parts, strict=True) for batch in turn]
    assert by_turns[: len(one)] == one
    assert all(batch == [size] for batch in by_turns[len(one) :])  # padding, which is computed but not counted


@given(sizes, batch_sizes, seeds, st.integers(0, 1000))
def test_training_draws_every_item_once_an_epoch(size, batch_size, seed, epoch):
    drawn = batches(size, seed, epoch, batch_size)
    assert sorted(chain(*drawn)) == list(range(size))
    assert all(len(batch) == batch_size for batch in drawn[:-1]) and len(drawn[-1]) <= batch_size
    assert drawn == batches(size, seed, epoch, batch_size)


@given(st.integers(3, 60), batch_sizes, processes, seeds)
def test_training_processes_share_the_batches_of_one(size, batch_size, count, seed):
    parts = [batches(size, seed, 3, batch_size, count, rank) for rank in range(count)]
    # Strict: every process needs equally many batches, otherwise one waits forever.
    together = [list(chain(*batch)) for batch in zip(*parts, strict=True)]
    assert list(chain(*together)) == list(chain(*batches(size, seed, 3, batch_size * count)))
    assert all(len(batch) == batch_size * count for batch in together[:-1])
    for batch in zip(*parts, strict=True):
        lengths = [len(part) for part in batch]
        assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


@given(sizes, batch_sizes, processes, seeds, st.data())
def test_groups_stay_together_and_change_nothing_else(size, batch_size, count, seed, data):
    groups = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=1), min_size=size, max_size=size))
    one = TrainSampler(range(size), batch_size * count, seed=seed, groups=groups)
    drawn = list(chain(*one))
    assert sorted(drawn) == list(range(size))
    known = [groups[index][0] for index in drawn if groups[index]]
    assert len(list(groupby(drawn, lambda index: groups[index] or [-1 - index]))) == len({*known}) + size - len(known)
    if size >= count:
        parts = [list(TrainSampler(range(size), batch_size, count, rank, seed, groups=groups)) for rank in range(count)]
        shared = chain(*(part for batch in zip(*parts, strict=True) for part in batch))
        assert list(shared) == list(chain(*one))


def test_large_groups_come_neither_early_nor_late():
    groups = [[1]] * 30 + [[]] * 30
    sampler = TrainSampler(range(60), 60, seed=2, groups=groups)
    places = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        order = [address % 60 for address in next(iter(sampler))]
        places.append(min(order.index(index) for index in range(30)))  # of 31 places among the items alone
    assert abs(sum(places) / len(places) - 15) < 2


def test_an_item_is_in_each_of_its_groups_in_some_epoch():
    groups = [[1, 2], [1], [1], [2], [2], [], [], [], []]
    sampler = TrainSampler(range(9), 9, seed=1, groups=groups)
    beside = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        order = [address % 9 for address in next(iter(sampler))]
        place = order.index(0)
        beside |= {*order[max(0, place - 1) : place + 2]}
    assert beside >= {1, 2, 3, 4}


def test_more_processes_than_items():
    with pytest.raises(ConfigError, match="2 training mentions for 3 processes"):
        TrainSampler(range(2), 8, 3, 0)


@given(sizes, batch_sizes, processes, st.booleans(), seeds)
def test_processes_partition_the_entity_batches_of_one_process(size, batch_size, count, by_length, seed):
    lengths = np.random.default_rng(seed).integers(0, 40, size).astype(np.uint16) if by_length else None
    one = list(EntitySampler(size, batch_size, lengths=lengths))
    samplers = [EntitySampler(size, batch_size, count, rank, lengths) for rank in range(count)]
    parts = [list(sampler) for sampler in samplers]
    assert sorted(chain(*parts)) == sorted(one)
    assert sorted(chain(*one)) == list(range(size))
    for sampler, part in zip(samplers, parts, strict=True):
        assert sampler.positions.tolist() == sorted(chain(*part))
    if by_length:
        order = list(chain(*one))
        assert order == sorted(range(size), key=lambda entity: (-int(lengths[entity]), entity))
    else:  # contiguous parts
        assert list(chain(*parts)) == one


@given(sizes, batch_sizes, processes, st.integers(0, 60))
def test_encoding_resumes_with_the_batch_that_holds_an_entity(size, batch_size, count, first):
    for rank in range(count):
        own = list(EntitySampler(size, batch_size, count, rank))
        rest = list(EntitySampler(size, batch_size, count, rank, first=first))
        assert rest == own[len(own) - len(rest) :]
        kept = list(chain(*own))[first:]
        assert list(chain(*rest))[len(list(chain(*rest))) - len(kept) :] == kept


@given(seeds)
def test_epochs_and_seeds_differ(seed):
    orders = [batches(40, seed, 0), batches(40, seed, 1), batches(40, seed + 7, 0)]
    assert orders[0] != orders[1] and orders[0] != orders[2]


@given(st.integers(1, 9), seeds, st.integers(0, 99), st.integers(0, 99))
def test_a_draw_is_in_range_and_repeats(count, seed, epoch, index):
    drawn = draw(count, seed, epoch, index)
    assert 0 <= drawn < count
    assert drawn == draw(count, seed, epoch, index)


def test_draws_reach_every_image_about_equally_often():
    drawn = [draw(3, 43, epoch, index) for epoch in range(20) for index in range(60)]
    assert all(320 < drawn.count(image) < 480 for image in range(3))  # 400 expected, standard deviation 16


@pytest.mark.slow
def test_draws_are_the_same_in_another_interpreter():
    code = "from mimic_pl.data.sampler import draw; print([draw(1000, 43, e, i) for e in range(3) for i in range(5)])"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[draw(1000, 43, e, i) for e in range(3) for i in range(5)]}\n"


class TrainerProgress:
    """The parts of a Trainer that hold the progress of training."""

    def __init__(self, epochs=(0, 0, 0, 0), batches=(0, 0, 0, 0), last=False):
        names = ("ready", "started", "processed", "completed")
        loop = SimpleNamespace(
            batch_progress=SimpleNamespace(
                current=SimpleNamespace(**dict(zip(names, batches, strict=True))), is_last_batch=last
            )
        )
        self.fit_loop = SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(**dict(zip(names, epochs, strict=True)))),
            epoch_loop=loop,
        )


@pytest.mark.parametrize(
    ("trainer", "point"),
    [
        (None, (0, 0)),
        (TrainerProgress(), (0, 0)),
        (TrainerProgress((3, 3, 3, 2), (5, 5, 5, 5), last=True), (3, 0)),  # at the end of an epoch
        (TrainerProgress((3, 3, 2, 2), (4, 4, 4, 3)), (2, 4)),  # at the end of a batch
        (TrainerProgress((3, 3, 2, 2), (5, 5, 5, 5), last=True), (2, 5)),  # in validation after the last batch
        (TrainerProgress((3, 2, 2, 2), (5, 5, 5, 5), last=True), (2, 0)),  # before the first batch
    ],
)
def test_the_resume_point(trainer, point):
    assert resume_point(trainer) == point


@given(st.integers(1, 60), batch_sizes, seeds, st.integers(0, 5), st.data())
def test_a_partial_epoch_is_completed(size, batch_size, seed, epoch, data):
    whole = batches(size, seed, epoch, batch_size)
    completed = data.draw(st.integers(0, len(whole)))
    sampler = TrainSampler(range(size), batch_size, seed=seed)
    sampler.start_at(epoch, completed)
    sampler.set_epoch(epoch)  # Lightning calls it again
    assert [[address % size for address in batch] for batch in sampler] == whole[completed:]
    assert len(sampler) == len(whole)
    sampler.set_epoch(epoch + 1)
    assert [[address % size for address in batch] for batch in sampler] == batches(size, seed, epoch + 1, batch_size)


def test_a_partial_epoch_needs_the_same_batches():
    loaders = [TrainLoader(range(20), batch_size=None, sampler=TrainSampler(range(20), size)) for size in (4, 5)]
    loaders[0].sampler.start_at(1, 2)
    loaders[0].load_state_dict(loaders[0].state_dict())
    with pytest.raises(ConfigError, match="Resume with the data, batch size"):
        loaders[0].load_state_dict(loaders[1].state_dict())
    loaders[0].sampler.start_at(1, 0)  # another epoch may have other batches
    loaders[0].load_state_dict(loaders[1].state_dict())
