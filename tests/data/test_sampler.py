"""Every item comes exactly once: whatever the size, the number of processes, the seed and the epoch."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data.sampler import EvalSampler, TrainSampler, draw

sizes = st.integers(1, 60)
processes = st.integers(1, 3)
seeds = st.integers(0, 2**31)


def places(size, seed, epoch, count=1, rank=0):
    sampler = TrainSampler(range(size), count, rank, seed=seed)
    sampler.set_epoch(epoch)
    addresses = list(sampler)
    assert {address // size for address in addresses} <= {epoch}
    return [address % size for address in addresses]


@given(sizes, processes)
def test_evaluation_shares_out_every_item_once(size, count):
    parts = [list(EvalSampler(range(size), count, rank)) for rank in range(count)]
    assert [len(EvalSampler(range(size), count, rank)) for rank in range(count)] == [len(part) for part in parts]
    assert sorted(chain(*parts)) == list(range(size))  # complete, and disjoint
    assert all(part == sorted(part) for part in parts)


@given(sizes, seeds, st.integers(0, 1000))
def test_training_takes_every_item_once_an_epoch(size, seed, epoch):
    order = places(size, seed, epoch)
    assert sorted(order) == list(range(size))
    assert order == places(size, seed, epoch)


@given(sizes, processes, seeds)
def test_training_processes_have_equally_many_items_and_miss_none(size, count, seed):
    parts = [places(size, seed, 3, count, rank) for rank in range(count)]
    assert {len(part) for part in parts} == {-(-size // count)}  # equal, or the slower process would be waited for
    assert set(chain(*parts)) == set(range(size))


@given(seeds)
def test_epochs_and_seeds_differ(seed):
    orders = [places(40, seed, 0), places(40, seed, 1), places(40, seed + 7, 0)]
    assert orders[0] != orders[1] and orders[0] != orders[2]


@given(st.integers(1, 9), seeds, st.integers(0, 99), st.integers(0, 99))
def test_a_draw_is_in_range_and_repeats(count, seed, epoch, index):
    drawn = draw(count, seed, epoch, index)
    assert 0 <= drawn < count
    assert drawn == draw(count, seed, epoch, index)


def test_draws_reach_every_picture_about_equally_often():
    drawn = [draw(3, 43, epoch, index) for epoch in range(20) for index in range(60)]
    assert all(320 < drawn.count(picture) < 480 for picture in range(3))  # 400 expected, standard deviation 16


def test_draws_are_the_same_in_every_interpreter():
    code = "from mimic_pl.data.sampler import draw; print([draw(1000, 43, e, i) for e in range(3) for i in range(5)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "12345")
    }
    assert said == {f"{[draw(1000, 43, e, i) for e in range(3) for i in range(5)]}\n"}
