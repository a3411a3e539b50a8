"""An index on disk equals the one in memory, whatever happens to the process that writes it."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import DataError, MachineError, StoreError
from mimic_pl.ranking import IndexBuilder, LanceIndex, Ranker, Shard
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.lance_dataset import open_dataset
from mimic_pl.ranking.lance_rows import RowFormat
from mimic_pl.ranking.lance_writer import IndexWriter, mark_complete
from tests.faults.catalogue import expect_fault
from tests.launch import FORK, needs_fork
from tests.ranking.lance_parts import CPU, DESCRIPTION, batches, build, content, data_files, records, states
from tests.ranking.tables import pad, table_matcher, table_states

pytestmark = pytest.mark.own_process

ROWS_PER_FRAGMENT = "mimic_pl.ranking.lance_writer.MAX_ROWS_PER_FRAGMENT"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_index_on_disk_equals_the_one_in_memory(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 30)
    in_memory = IndexBuilder(dtype).in_memory(records(95), batches(95), CPU)
    on_disk = build(tmp_path / "index", dtype=dtype)
    assert len(data_files(tmp_path / "index")) == 4
    assert len(on_disk) == 95 and on_disk.bytes_per_entity == in_memory.bytes_per_entity
    chosen = torch.tensor([94, 0, 33, 33])
    for size in (7, 95):
        for (order, a), (there, b) in zip(in_memory.blocks(size), on_disk.blocks(size), strict=True):
            assert torch.equal(order, there)
            assert torch.equal(a.state_hashes["text"], b.state_hashes["text"])
            assert torch.equal(a.finite, b.finite)
            for name in ("query", "mask"):
                assert torch.equal(a.states["text"][name], b.states["text"][name])
                assert b.states["text"][name].is_contiguous()
    for name in ("query", "mask"):
        assert torch.equal(in_memory.select(chosen).states["text"][name], on_disk.select(chosen).states["text"][name])
    assert on_disk.ids == in_memory.ids and on_disk.entities(torch.arange(95)) == records(95)
    assert on_disk.order_of(["Q90", "Q7"]).tolist() == [90, 7]
    assert on_disk.ids_of(torch.tensor([5, 3])) == ["Q5", "Q3"]
    with pytest.raises(DataError, match="no entity 'Q95'"):
        on_disk.order_of(["Q95"])


def test_every_dtype_round_trips(tmp_path):
    generator, made = torch.Generator().manual_seed(0), {}
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16):
        made[str(dtype).partition(".")[2]] = torch.randint(0, 100, (20, 3, 2), generator=generator).to(dtype)
    made |= {"scalar": torch.arange(20), "bfloat16": torch.randn(20, 5).bfloat16(), "one": torch.randn(20, 1).double()}
    with IndexWriter(tmp_path, torch.arange(20), {}, fields=["attr"]) as writer:
        writer.append(records(20), torch.arange(20), made)
        writer.flush()
    opened = open_dataset(tmp_path)
    assert opened is not None
    found, damaged = opened.format.states(opened.dataset.to_table())
    assert not damaged and found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_rows_may_be_stored_in_any_order(tmp_path):
    """As after an update of entities, which Lance moves to the end."""
    shuffled = torch.randperm(95, generator=torch.Generator().manual_seed(0))
    expected, folder = build(tmp_path / "in order"), tmp_path / "shuffled"
    entities, (_, made) = records(95), states(0, 95)
    columns = to_columns(made, "float32")
    with IndexWriter(folder, torch.arange(95), {}, fields=["attr"]) as writer:
        for order in shuffled.split(10):
            writer.append(
                [entities[n] for n in order], order, {name: column[order] for name, column in columns.items()}
            )
            writer.flush()
    mark_complete(folder)
    index = LanceIndex(folder)
    assert torch.equal(index.order, shuffled)
    assert content(index) == content(expected)
    chosen = torch.tensor([94, 0, 33])
    assert torch.equal(index.select(chosen).states["text"]["query"], expected.select(chosen).states["text"]["query"])
    local = Shard(torch.tensor([94, 3, 40]), 95, ProcessGroup(alone=True))
    part = LanceIndex(folder, shard=local)
    assert sorted(part.ids) == ["Q3", "Q40", "Q94"] and len(part) == 95
    assert {id: content(expected)[id] for id in part.ids} == content(part)


def test_ranking_from_disk_equals_ranking_from_memory(tmp_path):
    tables = {"text": torch.randint(0, 4, (5, 60), generator=torch.Generator().manual_seed(0)).float()}
    in_memory, mentions = table_states(tables)
    _, block = next(in_memory.blocks(60))
    made = {name: dict(state.items()) for name, state in block.states.items()}
    on_disk = build(tmp_path / "index", 60, lambda first: [(torch.arange(60), made)])
    golds = pad([[3], [4, 59], [], [0], [31]])
    for index in (in_memory, on_disk):
        ranking = Ranker(pairs_per_block=40)(table_matcher({"text": 1.0}), mentions, index, golds)
        best = tables["text"].argsort(dim=1, descending=True, stable=True)[:, :10]
        assert torch.equal(ranking.top_entities, best)


def test_an_interrupted_build_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 20)
    for interrupted_at in (30, 40, 90):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, encode=batches(95, interrupted_at=interrupted_at))
        with pytest.raises(StoreError, match="is unfinished: [248]0 entities are written"):
            LanceIndex(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in data_files(tmp_path)}
    encoded = []

    def counted(first):
        for positions, made in batches(95)(first):
            encoded.append(int(positions[0]))
            yield positions, made

    index = build(tmp_path, encode=counted)
    assert encoded == [80, 90] and len(kept) == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "no fragment was rewritten"
    assert content(index) == content(build(tmp_path.with_name("whole")))


def test_another_number_of_writers_resumes(tmp_path, monkeypatch):
    """Two writers have written some of their rows, one writer the rest."""
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 10)
    description = {**DESCRIPTION, "dtype": "float32", "number of entities": 95}
    for number, order in enumerate(torch.arange(95).split(50)):
        with IndexWriter(tmp_path, order, description, number, fields=["attr"]) as writer:
            positions, made = states(int(order[0]), int(order[0]) + 20)
            writer.append([records(95)[n] for n in positions.tolist()], positions, to_columns(made, "float32"))
    encoded = []

    def counted(first):
        for positions, made in batches(95)(first):
            encoded.append(int(positions[0]))
            yield positions, made

    index = build(tmp_path, encode=counted)
    assert encoded[0] == 20 and content(index) == content(build(tmp_path.with_name("whole")))
    assert sorted(index.order.tolist()) == list(range(95))


def test_a_fragment_corrupted_before_the_build_resumes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 20)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, encode=batches(95, interrupted_at=90))
    path = data_files(tmp_path)[2]
    bits = next(
        bits for n in range(80) if (bits := states(n, n + 1)[1]["text"]["query"].numpy().tobytes()) in path.read_bytes()
    )
    flip_bit(path, path.read_bytes().index(bits) + 5)
    with expect_fault("test_a_fragment_corrupted_before_the_build_resumes_is_an_error"):
        content(build(tmp_path))


def test_an_index_of_another_model_is_rejected(tmp_path):
    build(tmp_path, 20)
    for other, words in [
        ({"model": "b"}, "built for another model \\('a', now 'b'\\)"),
        ({"text template": "{attr}"}, "another text template"),
        ({"model": "b", "text template": "x"}, "another model .* and another text template"),
    ]:
        with pytest.raises(StoreError, match=words):
            build(tmp_path, 20, description={**DESCRIPTION, **other})
    with pytest.raises(StoreError, match="another dtype"):
        build(tmp_path, 20, dtype="int8")
    with pytest.raises(StoreError, match="another number of entities \\(20, now 21\\)"):
        build(tmp_path, 21)
    assert len(build(tmp_path, 21, dtype="int8", description={"model": "b"}, rebuild=True)) == 21
    assert len(LanceIndex(tmp_path, {"model": "b"})) == 21


def test_an_unfinished_index_of_another_model_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 20)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, encode=batches(95, interrupted_at=50))
    before = data_files(tmp_path)
    with pytest.raises(StoreError, match="unfinished entity index, which was begun for another model"):
        build(tmp_path, description={**DESCRIPTION, "model": "b"})
    assert data_files(tmp_path) == before
    assert len(build(tmp_path, description={"model": "b"}, rebuild=True)) == 95
    assert not {*before} & {*data_files(tmp_path)}


def test_a_missing_folder(tmp_path):
    with pytest.raises(StoreError, match="nowhere contains no entity index"):
        LanceIndex(tmp_path / "nowhere")


def endless_build(folder: Path, stop: int) -> None:
    torch.set_num_threads(1)  # a fork has no copies of the threads of its parent

    def encode(first):
        for number, batch in enumerate(batches(95, 5)(first)):
            time.sleep(0.005 if number < stop else 600)
            yield batch

    build(folder, encode=encode)


def start_build(folder, stop):
    """Start a build that hangs after some batches, so that it is killed before its end however fast the machine is."""
    assert FORK is not None
    process = FORK.Process(target=endless_build, args=(folder, stop))
    process.start()
    return process


@needs_fork
def test_a_killed_build_resumes(tmp_path, monkeypatch):
    """Killed at random moments: what was appended is kept, and a second build completes the index."""
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 5)
    rng, built = random.Random(0), []
    for trial in range(6):
        folder = tmp_path / str(trial)
        count = rng.randrange(15)
        process = start_build(folder, count + 3)
        while len(data_files(folder)) <= count and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        built.append(folder)
    whole = content(build(tmp_path / "whole"))
    for folder in built:
        opened, encoded = open_dataset(folder), []
        written = opened.dataset.count_rows() if opened else 0
        assert 0 <= written < 95

        def counted(first, encoded=encoded):
            encoded.append(first)
            return batches(95, 5)(first)

        index = build(folder, encode=counted)
        assert encoded == [written]
        assert content(index) == whole
        assert len(index) == 95 and len(data_files(folder)) == 19, "no fragments are left over"


@needs_fork
def test_a_second_writer_is_rejected_unless_the_first_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 5)
    process = start_build(tmp_path, 3)
    while not data_files(tmp_path):
        time.sleep(0.001)
    with expect_fault("test_a_second_writer_is_rejected_unless_the_first_was_killed"):
        build(tmp_path, rebuild=True)
    process.kill()
    process.join()
    assert len(build(tmp_path, encode=batches(95, 5))) == 95


@needs_fork
def test_using_lance_in_a_fork_of_a_process_that_used_it_is_an_error(tmp_path):
    build(tmp_path)
    assert FORK is not None
    receiver, sender = FORK.Pipe(duplex=False)

    def work():
        try:
            LanceIndex(tmp_path)
        except MachineError as error:
            sender.send(str(error))

    process = FORK.Process(target=work)
    process.start()
    assert "forked from one that has used one" in receiver.recv()
    process.join()


def flip_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


def read_everything(folder):
    index = LanceIndex(folder)
    return content(index)


def test_no_rows_are_a_table_without_rows():
    columns = {"one": torch.empty(0, 3), "two": torch.empty(0, dtype=torch.int64)}
    row_format = RowFormat.of(columns, {})
    table = row_format.table([], torch.empty(0, dtype=torch.int64), columns)
    found, damaged = row_format.states(table)
    assert len(table) == 0 and damaged == []
    assert {name: (t.dtype, tuple(t.shape)) for name, t in found.items()} == {
        "one": (torch.float32, (0, 3)),
        "two": (torch.int64, (0,)),
    }


def test_an_index_of_another_version_of_the_format(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("mimic_pl.ranking.lance_rows.VERSION", 2)
        build(tmp_path)
    with pytest.raises(StoreError, match=r"another version of mimic-pl \(format 2; this one reads 3\). Build it again"):
        LanceIndex(tmp_path)


def test_one_flipped_byte_of_an_index(tmp_path, monkeypatch):
    """In data, in metadata or in unused space: either an error or the same content."""
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 50)
    build(tmp_path)
    whole, rng, errors = read_everything(tmp_path), random.Random(0), 0
    for path in [*data_files(tmp_path), *(tmp_path / "_versions").glob("*.manifest")]:
        before = path.read_bytes()
        for place in [rng.randrange(len(before)) for _ in range(40)]:
            flip_bit(path, place)
            try:
                assert read_everything(tmp_path) == whole
            except StoreError as error:
                errors += 1
                known = ("is damaged", "is missing", "bytes instead of", "is unfinished")
                assert any(words in str(error) for words in known), error
            path.write_bytes(before)
    assert errors > 60
    assert read_everything(tmp_path) == whole


def test_a_corrupted_row_is_named(tmp_path):
    index = build(tmp_path)
    (path,) = data_files(tmp_path)
    bits = states(33, 34)[1]["text"]["query"].numpy().tobytes()
    flip_bit(path, path.read_bytes().index(bits) + 5)
    index.select(torch.arange(20))
    with expect_fault("test_a_corrupted_row_is_named"):
        index.select(torch.tensor([3, 33]))
    with pytest.raises(StoreError, match="the entity 'Q33' with the order number 33"):
        list(LanceIndex(tmp_path).blocks(50))
    name = path.read_bytes().index(b"entity 7")
    flip_bit(path, name + 2)
    with pytest.raises(StoreError, match="the entity 'Q7' with the order number 7"):
        LanceIndex(tmp_path).entities(torch.arange(95))


def test_a_missing_or_truncated_data_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 50)
    index = build(tmp_path)
    path = data_files(tmp_path)[0]
    before = path.read_bytes()
    for kept in (0, 200, len(before) - 1):
        _, block = next(LanceIndex(tmp_path).blocks(95))
        whole = block.states["text"]["query"].clone()
        os.truncate(path, kept)
        assert torch.equal(block.states["text"]["query"], whole), "memory-mapped states would be lost"
        with pytest.raises(
            StoreError, match=f"{path.name} has {kept} bytes instead of [0-9]+: it was truncated or replaced"
        ):
            LanceIndex(tmp_path)
        path.write_bytes(before)
    os.truncate(path, 2000)
    with expect_fault("test_a_missing_or_truncated_data_file"):
        list(index.blocks(95))
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name} is missing"):
        LanceIndex(tmp_path)


def test_a_disk_that_fills_up_under_an_index(small_disk, monkeypatch):
    """Another program fills the disk; once there is space again, the build resumes."""
    monkeypatch.setattr(ROWS_PER_FRAGMENT, 50)
    filler, folder = small_disk / "filler", small_disk / "index"

    def encode(first):
        for positions, made in batches(300)(first):
            if positions[0] == 150:
                free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
                filler.write_bytes(bytes(free - 8_000))
            yield positions, made

    with expect_fault("test_a_disk_that_fills_up_under_an_index"):
        build(folder, 300, encode)
    filler.unlink()
    encoded = []

    def counted(first):
        encoded.append(first)
        return batches(300)(first)

    assert len(build(folder, 300, counted)) == 300
    assert encoded == [150]


def test_missing_disk_space_is_reported_before_the_build(small_disk):
    with pytest.raises(StoreError, match="entity index needs 4.[0-9] MB in .*, but only .* are free"):
        build(small_disk / "index", 10_000)
    assert not data_files(small_disk / "index")


def test_nan_in_the_index(tmp_path):
    scores = torch.zeros(3, 20)
    scores[2, 13] = float("nan")
    index, mentions = table_states({"text": scores})
    made = {name: dict(state.items()) for name, state in index.select(torch.arange(20)).states.items()}
    stored = build(tmp_path, 20, lambda _: [(torch.arange(20), made)])
    with expect_fault("test_nan_in_the_index"):
        Ranker()(table_matcher({"text": 1.0}), mentions, stored, pad([[0], [1], [2]]))


def resident_memory() -> float:
    """Resident memory of this process in MB, including touched pages of memory-mapped files."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_flat(tmp_path):
    """390 MB of states, streamed in blocks and selected at random."""
    made = {"text": {"x": torch.arange(2000, dtype=torch.int64)[:, None].expand(2000, 9728).to(torch.int8)}}

    def encode(first):
        for start in range(0, 40_000, 2000):
            yield torch.arange(start, start + 2000), made

    index = build(tmp_path, 40_000, encode)
    before, largest, total = resident_memory(), 0.0, 0
    for _, block in index.blocks(1000):
        total += int(block.states["text"]["x"][:, ::512].sum())
        largest = max(largest, resident_memory())
    for _ in range(20):
        index.select(torch.randint(40_000, (128,)))
        largest = max(largest, resident_memory())
    assert total == int(made["text"]["x"][:, ::512].sum()) * 20
    print(f"{largest - before:.0f} MB of additional resident memory")
    assert largest - before < 200
