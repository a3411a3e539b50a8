"""One writer, killed at any moment, on any disk: what is there is whole, and the work goes on."""

from __future__ import annotations

import itertools
import os
import random
import time
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from mimic_pl.errors import StoreError
from mimic_pl.store import Column, Store, StoreWriter
from mimic_pl.store.writer import default_rows_per_shard
from tests.launch import FORK, needs_fork
from tests.store.conftest import COLUMNS, KIND, ROWS, content, files, write


def slow_write(folder: Path, pause: float, begun: Event) -> None:
    torch.set_num_threads(1)  # the threads of the forked process are not there
    with StoreWriter(folder, KIND, COLUMNS, ROWS, {"model": "abc"}, rows_per_shard=4) as writer:
        begun.set()
        for row in range(writer.next_row, ROWS):
            writer.append({name: tensor[row : row + 1] for name, tensor in content().items()})
            time.sleep(pause)


def start_writer(folder: Path, pause: float) -> ForkProcess:
    assert FORK is not None
    begun = FORK.Event()
    writer = FORK.Process(target=slow_write, args=(folder, pause, begun))
    writer.start()
    assert begun.wait(60)
    return writer


def resume(folder: Path) -> Path:
    return write(folder, rows_per_shard=4, description={"model": "abc"})


@needs_fork
def test_a_killed_build_ends_the_same_to_the_byte(tmp_path):
    expected = files(resume(tmp_path / "undisturbed"))
    rng = random.Random(0)
    seen = set()
    for trial in range(6):
        folder = tmp_path / str(trial)
        writer = start_writer(folder, 0.001)
        time.sleep(rng.uniform(0.0, 0.4))
        writer.kill()
        writer.join()
        finished = (folder / "manifest.json").exists()
        if not finished:
            with pytest.raises(StoreError, match="There is no entity index|unfinished"):
                Store.open(folder, KIND)
        with StoreWriter(folder, KIND, COLUMNS, ROWS, {"model": "abc"}, rows_per_shard=4) as interrupted:
            seen.add(interrupted.next_row)
            assert interrupted.next_row == ROWS or interrupted.next_row % 4 == 0
            made = content()
            interrupted.append({name: tensor[interrupted.next_row :] for name, tensor in made.items()})
        assert files(folder) == expected
    assert any(0 < row < ROWS for row in seen), "no trial was killed halfway"


def die_at(moment: int, folder: Path) -> None:
    torch.set_num_threads(1)  # the threads of the forked process are not there
    calls, replace = itertools.count(1), os.replace

    def replace_or_die(old: Path, new: Path) -> None:
        if next(calls) == moment:
            os._exit(9)
        replace(old, new)

    os.replace = replace_or_die
    write(folder, rows=10, rows_per_shard=4)


@needs_fork
@pytest.mark.parametrize("moment", range(1, 9))
def test_killed_between_any_two_steps(tmp_path, moment):
    """The process ends, without any clean-up, at the n-th call that changes a name in the folder."""
    expected = files(write(tmp_path / "undisturbed", rows=10, rows_per_shard=4))
    assert FORK is not None
    process = FORK.Process(target=die_at, args=(moment, tmp_path / "index"))
    process.start()
    process.join()
    assert process.exitcode == 9  # three shards, their manifests, the last manifest again, its rename
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert files(write(tmp_path / "index", rows=10, rows_per_shard=4)) == expected


@needs_fork
def test_a_second_writer_is_refused_and_a_killed_one_forgotten(tmp_path):
    writer = start_writer(tmp_path / "index", 0.01)
    with pytest.raises(StoreError, match="Another process is writing to .*index"):
        resume(tmp_path / "index")
    writer.kill()
    writer.join()
    resume(tmp_path / "index")


@needs_fork
def test_a_second_writer_may_wait(tmp_path):
    writer = start_writer(tmp_path / "index", 0.001)
    with StoreWriter(tmp_path / "index", KIND, COLUMNS, ROWS, {"model": "abc"}, rows_per_shard=4, wait=-1) as second:
        assert second.next_row == ROWS
    writer.join()
    assert writer.exitcode == 0


def test_a_shard_damaged_before_the_build_went_on_is_written_again(tmp_path):
    expected = files(write(tmp_path / "undisturbed"))
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "index", KIND, COLUMNS, ROWS, rows_per_shard=16) as writer:
        writer.append({name: tensor[:70] for name, tensor in content().items()})
        raise RuntimeError
    path = tmp_path / "index" / "shard-00002.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with StoreWriter(tmp_path / "index", KIND, COLUMNS, ROWS, rows_per_shard=16) as writer:
        assert writer.next_row == 32
        writer.append({name: tensor[32:] for name, tensor in content().items()})
    assert files(tmp_path / "index") == expected


def test_an_unfinished_build_of_something_else(tmp_path):
    options = {"rows_per_shard": 16, "description": {"model": "abc", "text": "t"}}
    with pytest.raises(RuntimeError), StoreWriter(tmp_path, KIND, COLUMNS, ROWS, **options) as writer:
        writer.append({name: tensor[:40] for name, tensor in content().items()})
        raise RuntimeError
    before = files(tmp_path)
    with pytest.raises(StoreError, match="unfinished build.*model is 'abc', and 'xyz' is wanted.*Choose another"):
        StoreWriter(tmp_path, KIND, COLUMNS, ROWS, **{**options, "description": {"model": "xyz", "text": "t"}})
    for columns, rows, size, words in [
        (COLUMNS, ROWS + 1, 16, "rows is 103, and 104 is wanted"),
        (COLUMNS, ROWS, 17, "rows_per_shard is 16, and 17 is wanted"),
        ({**COLUMNS, "bias": Column(torch.float64)}, ROWS, 16, r"column 'bias' is float32 \[\], and float64"),
    ]:
        with pytest.raises(StoreError, match=words):
            StoreWriter(tmp_path, KIND, columns, rows, options["description"], rows_per_shard=size)
    with pytest.raises(StoreError, match="unfinished: 32 of 103 rows"):
        Store.open(tmp_path, KIND)
    assert files(tmp_path) == before
    write(tmp_path, description={"model": "xyz"}, anew=True)
    assert Store.open(tmp_path, KIND).description == {"model": "xyz"}


def test_a_finished_store_needs_nothing_and_gives_nothing_away(folder):
    before = files(folder)
    with StoreWriter(folder, KIND, COLUMNS, ROWS, Store.open(folder, KIND).description, rows_per_shard=16) as writer:
        assert writer.next_row == ROWS and writer.bytes_needed == 0
    with pytest.raises(StoreError, match="holds the entity index, which is not the one to be written"):
        write(folder)
    assert files(folder) == before
    assert files(write(folder, rows=20, anew=True)) == files(write(folder.with_name("short"), rows=20))


def test_wrong_rows_are_refused(tmp_path):
    with StoreWriter(tmp_path, KIND, {"x": Column(torch.float32, (3,)), "y": Column(torch.int8)}, rows=4) as writer:
        for rows, words in [
            ({"x": torch.zeros(1, 3)}, "has the columns"),
            ({"x": torch.zeros(1, 3), "y": torch.zeros(2, dtype=torch.int8)}, "different length"),
            ({"x": torch.zeros(1, 3), "y": torch.zeros(1)}, "column 'y'"),
            ({"x": torch.zeros(1, 2), "y": torch.zeros(1, dtype=torch.int8)}, "column 'x'"),
            ({"x": torch.zeros(5, 3), "y": torch.zeros(5, dtype=torch.int8)}, "announced with 4 rows and got 5"),
        ]:
            with pytest.raises(ValueError, match=words):
                writer.append(rows)
        writer.append({"x": torch.zeros(3, 3), "y": torch.zeros(3, dtype=torch.int8)})
        with pytest.raises(ValueError, match="announced with 4 rows and got 3"):
            writer.commit()
        writer.append({"x": torch.zeros(1, 3), "y": torch.zeros(1, dtype=torch.int8)})
    with pytest.raises(ValueError, match="plain JSON"):
        StoreWriter(tmp_path / "other", KIND, COLUMNS, 1, {"model": torch.zeros(1)})


def test_the_size_is_told_before(tmp_path):
    with StoreWriter(tmp_path, KIND, COLUMNS, ROWS, rows_per_shard=16) as writer:
        told = writer.bytes_needed
        writer.append(content())
        assert writer.next_row == ROWS and writer.bytes_needed == writer.bytes_for(7)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert ROWS * writer.bytes_per_row < written <= told


def test_no_room_is_told_before(tmp_path):
    with pytest.raises(StoreError, match=r"entity index needs .* TB in .*, and .* are free"):
        StoreWriter(tmp_path, KIND, {"x": Column(torch.float32, (1000,))}, rows=10**12)
    assert not list(tmp_path.glob("*.safetensors"))


def test_default_shards():
    """Some 48 MB, of some thousand rows at most."""
    for shape, rows in (((4832,), 2483), ((10,), 4096), ((3, 224, 224, 300), 1)):
        column = Column(torch.float32, shape)
        assert default_rows_per_shard({"x": column}) == rows


def test_a_disk_that_fills_up(small_disk):
    """Another program takes the room that was free in the beginning; once there is room again, the build goes on."""
    columns, rows = {"x": Column(torch.uint8, (1000,))}, torch.arange(150_000).view(150, 1000).to(torch.uint8)
    taken = small_disk / "taken"
    with (
        pytest.raises(StoreError, match="The disk is full: .*shard-00002.* needs 40.1 kB, and .* are free"),
        StoreWriter(small_disk / "index", KIND, columns, 150, rows_per_shard=40) as writer,
    ):
        writer.append({"x": rows[:80]})
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        taken.write_bytes(bytes(free - 20_000))
        writer.append({"x": rows[80:]})
    assert not list((small_disk / "index").glob("*.tmp"))
    taken.unlink()
    with StoreWriter(small_disk / "index", KIND, columns, 150, rows_per_shard=40) as writer:
        assert writer.next_row == 80
        writer.append({"x": rows[80:]})
    assert torch.equal(Store.open(small_disk / "index", KIND).slice(0, 150)["x"], rows)


def test_a_store_that_grows(tmp_path):
    made = content()
    options = {"rows_per_shard": 16}
    with StoreWriter(tmp_path, KIND, COLUMNS, **options) as writer:
        writer.append({name: tensor[:20] for name, tensor in made.items()})
        early = Store.open(tmp_path, KIND)  # a full shard belongs to it at once
        assert len(early) == 16
    assert len(Store.open(tmp_path, KIND)) == 20
    with pytest.raises(RuntimeError), StoreWriter(tmp_path, KIND, COLUMNS, **options) as writer:
        assert writer.next_row == 20
        writer.append({name: tensor[20:50] for name, tensor in made.items()})
        raise RuntimeError
    with StoreWriter(tmp_path, KIND, COLUMNS, **options) as writer:
        assert writer.next_row == 36
        writer.append({name: tensor[36:] for name, tensor in made.items()})
    store = Store.open(tmp_path, KIND)
    assert all(torch.equal(store.slice(0, ROWS)[name], tensor) for name, tensor in made.items())
    assert all(torch.equal(early.slice(0, 16)[name], tensor[:16]) for name, tensor in made.items())
